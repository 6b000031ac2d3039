//! Campaigns: many seeds, one after the other.

fn main() {
    let from: u64 = std::env::args()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    let n: u64 = std::env::args()
        .nth(2)
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let text = std::env::args().nth(3).is_some();
    std::panic::set_hook(Box::new(|_| {}));
    let started = std::time::Instant::now();
    let mut slow = (0, 0);
    for seed in from..from + n {
        let t = std::time::Instant::now();
        let keep = if text {
            retide_sim::Keep::Text
        } else {
            retide_sim::Keep::Hash
        };
        let report = retide_sim::play(seed, retide_sim::Bug::None, keep);
        slow = slow.max((t.elapsed().as_millis(), seed));
        if text {
            println!("{}", report.text);
        }
        if n == 1 || report.broken.is_some() {
            println!(
                "{seed}: {:?} {:?} {:x} notes {}",
                report.broken, report.figures, report.hash, report.notes
            );
        }
    }
    println!("{:?} slowest {slow:?}", started.elapsed());
}
