//! The shim alone, for this crate's tests; in the product it is the `navarch` program itself.

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "shim") {
        runtime::shim::main(args.collect());
    }
    eprintln!("this program is the shim of the runtime's tests; it is started by them");
    std::process::exit(2);
}
