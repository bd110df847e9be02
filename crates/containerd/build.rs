//! Makes Rust of containerd's own definitions, without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let services = ["content", "images", "leases", "snapshots"];
    let files = services.map(|name| format!("services/{name}/v1/{name}.proto"));
    let files = protox::compile(files.iter().map(String::as_str).chain(["cri/runtime.proto"]), ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    Ok(())
}
