//! What must hold for any input. Each check panics where it does not.
//!
//! The fuzz targets call these functions with inputs of a fuzzer; the test `regressions` calls
//! them with the inputs that once failed, which needs no fuzzer.

pub mod grammars;
pub mod model;
pub mod resources;
