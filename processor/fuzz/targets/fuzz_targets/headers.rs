//! The body of `retide_fuzz::headers` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| retide_fuzz::headers(data));
