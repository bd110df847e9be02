//! Makes Rust of containerd's own definitions, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let services = ["content", "images", "leases", "snapshots"];
    let files = protox::compile(services.map(|name| format!("services/{name}/v1/{name}.proto")), ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    Ok(())
}
