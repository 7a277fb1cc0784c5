//! OpenAPI documents.

use api::kinds::KindTable;
use client::Body;
use http::{HeaderMap, Response};

use crate::status::{ApiError, ApiResult};

/// The documents, made when first asked for.
#[derive(Default)]
pub struct OpenApi {}

impl OpenApi {
    /// Answers `/openapi/v2`, `/openapi/v3` and `/openapi/v3/...`.
    pub fn answer(
        &self,
        _kinds: &KindTable,
        _path: &str,
        _hash: &str,
        _headers: &HeaderMap,
    ) -> ApiResult<Response<Body>> {
        Err(ApiError::no_such_page())
    }
}
