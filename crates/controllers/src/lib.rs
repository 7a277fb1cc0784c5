//! Control loops, one file each.
