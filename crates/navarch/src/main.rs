//! `navarch`: the whole cluster in one binary. This crate parses the command line and joins the parts; what a
//! part does stands in its own crate.

mod api_options;
mod backup;
mod cluster_network;
mod cni;
mod command;
mod data_dir;
mod datastore;
mod down;
mod image;
mod join_token;
mod kubeconfig;
mod migrate;
mod policies;
mod preflight;
mod reset;
mod secrets_encryption;
mod server;
mod service_proxy;
mod simulate;
mod up;
mod web;

use std::process::ExitCode;

use clap::Parser;
use command::{Cli, Command};

/// A quarter of the API server's CPU time less than with glibc's allocator, in less memory (docs/decisions/0007-allocator.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // The shim must not inherit threads or a runtime: it comes before everything else.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "shim") {
        runtime::shim::main(args.collect());
    }
    if cni::is_called_so() {
        return cni::main();
    }
    let outcome = match Cli::parse().command {
        Command::Server(options) => server::main(options),
        Command::Agent(options) => server::agent::main(options),
        Command::Token { data_dir } => join_token::main(&data_dir),
        Command::Up(options) => up::main(options),
        Command::Down { data_dir } => down::main(&data_dir),
        Command::Reset { data_dir } => reset::main(&data_dir),
        Command::Image { data_dir, action } => image::main(&data_dir, action),
        Command::SecretsEncryption { data_dir, action } => secrets_encryption::main(&data_dir, action),
        Command::Backup { data_dir, action } => backup::main(&data_dir, action),
        Command::Datastore { data_dir, action } => migrate::main(&data_dir, action),
        Command::Policies { data_dir } => policies::main(&data_dir),
        Command::Simulate(options) => simulate::main(options),
        Command::Web(options) => web::main(options),
        Command::Cni => return cni::main(),
        Command::Version => {
            println!("navarch {} (Kubernetes v1.36)", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}
