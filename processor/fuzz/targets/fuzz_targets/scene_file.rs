//! The body of `retide_fuzz::scene_file` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| retide_fuzz::scene_file(data));
