//! The API server: one generic request pipeline over the table of kinds.
