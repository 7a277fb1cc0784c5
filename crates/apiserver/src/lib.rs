//! The API server: one generic request pipeline over the table of kinds.
pub mod discovery;
pub mod strategy;
