//! Development only: in-memory registry, faults, generators and models.
