//! `navarch secrets-encryption`: asks the running server about the keys that Secrets are encrypted with.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use client::Client;
use client::https::Https;
use http::{Method, Request};
use serde_json::Value;

use crate::command::EncryptionAction;
use crate::data_dir::DataDir;

/// Does what was asked.
pub fn main(path: &Path, action: EncryptionAction) -> anyhow::Result<()> {
    let Some(data) = DataDir::at(path)? else {
        bail!("there is no cluster in {}; start one with `navarch up`", path.display());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(ask(&data, action))?;
    print(&report, action);
    Ok(())
}

async fn ask(data: &DataDir, action: EncryptionAction) -> anyhow::Result<Value> {
    let endpoint = client::kubeconfig::load(&data.admin_kubeconfig(), "navarch-secrets-encryption")?;
    let client = Client::new(Arc::new(Https::new(&endpoint)?));
    let (method, path) = match action {
        EncryptionAction::Status => (Method::GET, "/navarch/v1/secrets-encryption"),
        EncryptionAction::Rotate => (Method::POST, "/navarch/v1/secrets-encryption/rotate"),
        EncryptionAction::Reencrypt => (Method::POST, "/navarch/v1/secrets-encryption/reencrypt"),
    };
    let request = Request::builder().method(method).uri(path).body(Bytes::new())?;
    let answer = client.request(request).await.context("the server does not answer; is it running?")?;
    let body: Value = serde_json::from_slice(answer.body()).context("the answer is no JSON")?;
    if !answer.status().is_success() {
        bail!("{}", body["message"].as_str().unwrap_or("the server refused"));
    }
    Ok(body)
}

fn print(report: &Value, action: EncryptionAction) {
    if !matches!(action, EncryptionAction::Status) {
        println!("rewritten: {}", report["rewritten"]);
        return;
    }
    println!("configuration: {}", report["configuration"].as_str().unwrap_or_default());
    println!("{:<32} VALUES", "KEY");
    for (key, count) in report["values"].as_object().into_iter().flatten() {
        println!("{key:<32} {count}");
    }
    println!("to be rewritten: {}", report["stale"]);
}
