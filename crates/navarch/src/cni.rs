//! `navarch cni`: the pod network as a CNI plugin. Runtimes start plugins by file name and without arguments, so a link to this
//! program called `navarch-cni` does the same.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

/// What the program must be called to be a plugin.
const PLUGIN: &str = "navarch-cni";
/// No configuration is longer.
const MAX_CONFIGURATION: u64 = 16 << 20;

/// Whether this process was started as a plugin.
pub fn is_called_so() -> bool {
    std::env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some(PLUGIN.as_ref()))
}

/// Serves one command. Standard output is the protocol's, so all else goes to standard error.
pub fn main() -> ExitCode {
    match serve() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> anyhow::Result<bool> {
    crate::server::log();
    let mut stdin = Vec::new();
    std::io::stdin().lock().take(MAX_CONFIGURATION).read_to_end(&mut stdin)?;
    let env = |name: &str| std::env::var(name).ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(cni::plugin::serve(&network::plugin::NetworkPlugin, &env, &stdin));
    let mut out = std::io::stdout().lock();
    out.write_all(answer.text.as_bytes())?;
    out.flush()?;
    Ok(answer.ok)
}
