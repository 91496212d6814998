//! Compiles the interfaces with protox, so that building berth needs no protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=runtime");
    println!("cargo::rerun-if-changed=berth");
    println!("cargo::rerun-if-changed=shim");
    #[cfg(feature = "cri")]
    compile_service("runtime/v1/api.proto", &["runtime.v1.AuthConfig"])?;
    #[cfg(feature = "control")]
    compile_service("berth/v1/control.proto", &["berth.v1.RegistryAuth"])?;
    #[cfg(feature = "shim")]
    prost_build::Config::new()
        .btree_map(["."])
        .compile_fds(protox::compile(["shim/v1/shim.proto"], ["."])?)?;
    Ok(())
}

/// `secret` messages get a Debug of their own in lib.rs that shows no credential.
#[cfg(feature = "grpc")]
fn compile_service(file: &str, secret: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = prost_build::Config::new();
    config.btree_map(["."]).skip_debug(secret);
    tonic_prost_build::configure()
        .compile_fds_with_config(protox::compile([file], ["."])?, config)?;
    Ok(())
}
