//! The API's facts and pure functions on objects.
pub mod apply;
pub mod codec;
pub mod custom;
pub mod field;
pub mod jsonpath;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod quota;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod structural;
pub mod table;
