//! The shim alone. `make build` puts it into the `navarch` program, whose own size would cost each pod memory; this
//! crate's tests run it too.

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "shim") {
        runtime::shim::main(args.collect());
    }
    eprintln!("this program is the parent of a pod's containers; the container runtime starts it");
    std::process::exit(2);
}
