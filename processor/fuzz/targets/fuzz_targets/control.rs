//! The body of `retide_fuzz::control` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| retide_fuzz::control(data));
