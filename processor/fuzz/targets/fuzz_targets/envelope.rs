//! The body of `retide_fuzz::envelope` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| retide_fuzz::envelope(data));
