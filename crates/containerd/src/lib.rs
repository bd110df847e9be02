//! containerd's gRPC API, as far as Floe serves and asks it.
//!
//! The definitions in `proto/` are containerd's (<https://github.com/containerd/containerd>, `api/`, release 2.3, under
//! the Apache License 2.0); the services are those of 1.6 and later. Filters are in [`filter`].
//!
//! Leaves to others: transport, and what the answers mean.

pub mod filter;

/// Common types.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented in `proto/`")]
pub mod types {
    tonic::include_proto!("containerd.types");
}

/// The container runtime interface, by which kubelet asks containerd for images and containers: what Floe needs of it.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented in `proto/`")]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Services, each with its client and its server.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; documented in `proto/`")]
pub mod services {
    pub mod content {
        pub mod v1 {
            tonic::include_proto!("containerd.services.content.v1");
        }
    }
    pub mod images {
        pub mod v1 {
            tonic::include_proto!("containerd.services.images.v1");
        }
    }
    pub mod leases {
        pub mod v1 {
            tonic::include_proto!("containerd.services.leases.v1");
        }
    }
    pub mod snapshots {
        pub mod v1 {
            tonic::include_proto!("containerd.services.snapshots.v1");
        }
    }
}
