//! The disk fails, is full, loses power, lies.
