//! Selectors of devices for tests: the API server's CEL, as the server joins them.
use std::sync::Arc;

use apiserver::cel::devices::{Refusal, Selector};
use k8s_openapi::api::resource::v1::Device;
use scheduler::devices;

#[derive(Debug)]
pub struct Cel;

#[derive(Debug)]
struct Compiled(Selector);

impl devices::Selectors for Cel {
    fn compile(&self, expression: &str) -> Result<Arc<dyn devices::Selector>, String> {
        match Selector::compile(expression) {
            Ok(selector) => Ok(Arc::new(Compiled(selector))),
            Err(Refusal::Wrong(why)) => Err(why),
            Err(Refusal::TooComplex) => Err("too complex".to_owned()),
        }
    }
}

impl devices::Selector for Compiled {
    fn matches(&self, driver: &str, device: &Device) -> Result<bool, String> {
        self.0.matches(driver, device).map_err(|error| error.to_string())
    }
}
