# What is done again and again; `just` alone lists it.
set positional-arguments

_list:
    @just --list --unsorted

# Format, lints, docs: before each push
check:
    .ci/run check

# All tests, on a real broker
test:
    .ci/run test

# The inner loop: all that needs no broker, in less than a minute after the build
test-fast *filter:
    # Those of targets wait for servers most of the time; the one that starts real ones takes half a minute by itself.
    RUST_TEST_THREADS="${RUST_TEST_THREADS:-6}" cargo test --workspace --locked --lib --bins \
        --test beside --test breaker --test campaigns --test control --test cooldown --test duplicates --test engine --test envelope --test exhausted --test headers \
        --test missing --test ordering --test pending --test quota --test retention --test turns --test wire \
        -- --skip at_real_servers "$@"

# One test of processes or commands on a real broker, by a part of its name
test-process *filter:
    cargo test --locked -p retide --test process -- "$@"

# A measurement: just bench hop --records 100000
bench *arguments:
    cargo run --locked --release -- bench "$@"

# A broker, a target, 2,000 tasks, and retide between them
demo *arguments:
    cargo run --locked --release -- demo "$@"

# A Kafka of one's own, until Ctrl-C
rig *arguments:
    docker/kafka/run "$@"

# Hostile bytes for everything that is read: just fuzz 1000000 7
fuzz inputs="200000" seed="1":
    RETIDE_FUZZ_INPUTS={{ inputs }} RETIDE_FUZZ_SEED={{ seed }} cargo test --locked --release -p retide-fuzz

# Simulated histories: just sim --seeds 100000
sim *arguments:
    cargo run --locked --release -p retide-sim -- "$@"

# A crash campaign: just chaos --seed 7 --kills 20
chaos *arguments:
    processor/chaos/run "$@"

# Formats everything
fmt:
    cargo fmt --all
