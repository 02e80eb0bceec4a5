//! What operators look at and install: `status`, `top`, completions and manual pages, by the real binary.

mod support;

mod tools {
    pub(crate) mod manual;
}
