//! Embeds the small shim that `make build` has made and named by `NAVARCH_SHIM`.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(embedded_shim)");
    println!("cargo::rerun-if-env-changed=NAVARCH_SHIM");
    if let Some(program) = std::env::var_os("NAVARCH_SHIM") {
        println!("cargo::rerun-if-changed={}", program.display());
        println!("cargo::rustc-cfg=embedded_shim");
    }
}
