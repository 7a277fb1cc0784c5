//! The API's facts and pure functions on objects.
