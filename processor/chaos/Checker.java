// What a campaign did and saw, checked against what retide promises.
//
// Java and Kafka's own clients on purpose: it shares no code with retide, and reads only what anyone could read: topics and their
// text headers, the group's committed offsets, and the ledgers of those who produced and received the tasks.
//
//   java -cp 'target/kafka/VERSION/*' processor/chaos/Checker.java check [--bootstrap HOST:PORT] [--dump FILE] [--list FILE] DIR...
//   java -cp 'target/kafka/VERSION/*' processor/chaos/Checker.java sample --bootstrap HOST:PORT --group GROUP --out FILE
//   java -cp 'target/kafka/VERSION/*' processor/chaos/Checker.java dump --bootstrap HOST:PORT --topic T --partition P [--keep FILE]
//
// Where the campaign's guarantee is at_least_once, what may come twice then, and the order, which holds only while nothing goes wrong, are
// counted, and break nothing.
//
// `check` prints one line for each promise, and exits with 1 if one was broken. With --bootstrap the topics are read from the broker and
// written to DIR/topics.tsv; without it they are read from there, or from the file that --dump names. --list names a file
// with more directories, one a line. `sample` appends the committed offsets to a file every second until it is killed. `dump` prints the end
// of a partition and the offset and task of each record on it; with --keep it appends the records to a file as they are in topics.tsv.
//
// Ledgers are lines of tab-separated fields, times are microseconds since the epoch unless they say otherwise:
//   campaign.tsv   key, value
//   generator.tsv  intent, time, id, outcome it must have, attempts that takes, delay in ms, fingerprint of the payload, and its key, if
//                  it is to start after those of its key that are before it; the batch that a header names, and its scene; its key, if it
//                  may be held by it; and what its target does
//                  ack, time, id, partition, offset | error, time, id, what | again, time, id, partition, offset of another record of it
//                  round, time, id, delay in ms, fingerprint of the payload: another record of it, which is to take its place
//   commands.tsv   command, time, name, verb (cancel, run-now, reschedule, complete), what it names tasks by (id, batch, scene), and the
//                  value, ids with commas between them
//                  ack, time, name, partition, offset | error, time, name, what
//   answers.tsv    the same, of those that a target sends, later; and what is asked of campaigns that replay dead letters (replay,
//                  pause-campaign, resume-campaign, abort-campaign), which name a campaign; a replay also what it means dead letters by
//                  (scene, fingerprint, died), and the value, of times FROM..TO in ms
//   holds.tsv      hold, time, name, what it names tasks by (scene, key), the value, when the command line ended and with what exit code (0
//                  where all shards have said that they know), when the release began and ended, and with what exit code
//                  release, time, name, when it ended and with what exit code: what was out of attempts is let go
//   breakers.tsv   open, close or reset: what is wanted of the breakers of the target that may be down; when that command began, when it ended
//                  and with what exit code (0 where all shards have said that they know), until when it was wanted, and when the command line
//                  had ended that took it back
//   replays.tsv    broken, campaign, from when to when its target was broken for its tasks; for people
//   target.tsv     time, monotonic time, id, attempt, due time in ms, idempotency key, fingerprint of the body, origin, status,
//                  the least wait before the next attempt in ms, if it asked for one; the limit in ms of an answer that it gives later;
//                  and the campaign that has replayed the task, if one has
//   faults.tsv     begin, number, time, kind, process, detail | end, number, time | exit, time, process, itself or sigterm, status
//                  kinds of campaigns: kill, zombie, reply, broker, storm; of simulations, too: cut, from when the group gives a process
//                  up until it hears of it, and stall, from a call without an answer until that is noticed; and the acts of an adversary
//                  told, number, time, where the fault was not told in time | note, time, idle or failed, detail
//   gone.tsv       number of the fault, id: a task that an admin may have destroyed
//   exempt.tsv     number of the fault, id: a task of which an admin destroyed what was known, so that it may be done again
//   odd.tsv        time, id, outcome it must have: a record that no producer should write
//   deleted.tsv    as topics.tsv: records that an admin deleted
//   offsets.tsv    time, topic, partition, offset
//   topics.tsv     C (committed) or A (aborted), topic, partition, offset, append time in ms, id, outcome, event, attempt, hops,
//                  origin, fingerprint of the value; of commands the name, what was counted, and the stage (request, step, answer, ended)
//                  are in the places of id, outcome and event; of events the name of the command that it follows from is in that of origin,
//                  and of a duplicate the place of its record in that of outcome, and the place of the record that has its task in that of
//                  origin; where a record takes the place of another one, the event is replaced, and these are the two; of callbacks the origin
//                  is where the record of the task is; then, of tasks that were replayed, the campaign, its place behind its name, and how often
//                  that was (of the event replayed the name alone); and of a dead letter its scene and its fingerprint.
//                  Of a campaign's record, the name is in the place of id, and what it says in that of outcome. What is marked as replayed is
//                  the event mark, with the offsets in the place of outcome, and the partition and the chunk of them in that of origin

import java.io.BufferedReader;
import java.io.IOException;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ListConsumerGroupOffsetsOptions;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public final class Checker {
    /** How long a fault is felt after its end: a session (6 s), and then a transaction that has to time out (10 s), and a start. */
    static final long TAIL = 25_000_000;
    /** How long a stopped process works on when it goes on, before it knows that it was replaced. */
    static final long ZOMBIE = 5_000_000;
    /** Faults in which a process commits nothing from begin to end, and works on. Simulations know both; a campaign cannot. */
    static final Set<String> UNNOTICED = Set.of("cut", "stall");
    /** Faults after which no attempt is made twice: processes drain, or nothing of what they do is in the way. */
    static final Set<String> HARMLESS =
            Set.of("storm", "odd", "widen", "delete", "setting", "intruder", "scene-gone", "scene-unreadable", "metadata");
    /** Acts that keep what was answered from being committed: who is told to leave meanwhile says that it failed. */
    static final Set<String> HOLDING = Set.of("deny", "quota", "hang");
    /** How long a consequence may be on a topic before its transaction has ended, with a fault in between. */
    static final long COMMIT = 30_000_000;
    /** Longest way of a call that was started to the target's ledger. */
    static final long REACHED = 1_000_000;
    /** Within this time all processes know that a target wants rest. */
    static final long HEARD = 1_000_000;
    /** Within this time what was held is back. */
    static final long BACK = 60_000_000;
    /** How exactly that is measured. */
    static final long STEP = 250_000;
    /** Attempts of a round, where a task is held when it is out of them. */
    static final int SPENT_ATTEMPTS = 2;
    /** The deadline that stands still while its task is held. */
    static final long DEADLINE = 20_000_000;
    /** How long one whose attempts fail may not be due when its hold begins, or expires sooner since the next attempt would come too late. */
    static final long BETWEEN = 2_000_000;
    /** What is produced so long before a target is left alone again, or its part of a campaign ends, may come too late to be called. */
    static final long CALLED = 4_000_000;
    /** So many tasks are not all kept from being called by faults. */
    static final int ENOUGH = 8;
    /** Most replays of a task. */
    static final int MOST_REPLAYS = 5;
    /** So many attempts of a campaign have come back, and all have failed, where it must have stopped: its first steps are over by then. */
    static final int BRAKED = 60;
    /** Records of one transaction have times that are so close, in ms. */
    static final long SAME = 1_000;
    /** Longest lateness of 99 of 100 attempts while nothing is wrong, in ms: what a busy machine needs to start all processes, twice. */
    static final long LATE = 8_000;

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        List<String> rest = new ArrayList<>();
        for (int i = 0; i < arguments.length; i++) {
            if (arguments[i].startsWith("--") && i + 1 < arguments.length) {
                options.put(arguments[i], arguments[++i]);
            } else {
                rest.add(arguments[i]);
            }
        }
        String command = rest.isEmpty() ? "" : rest.remove(0);
        switch (command) {
            case "sample" -> sample(options);
            case "dump" -> dump(options);
            case "check" -> {
                if (options.containsKey("--list")) {
                    rest.addAll(Files.readAllLines(Path.of(options.get("--list"))));
                }
                System.exit(check(options, rest) ? 0 : 1);
            }
            default -> {
                System.err.println("usage: Checker.java check [--bootstrap B] [--dump FILE] [--list FILE] DIR... | sample --bootstrap B --group G --out FILE"
                        + " | dump --bootstrap B --topic T --partition P [--keep FILE]");
                System.exit(2);
            }
        }
    }

    /** Checks each history; whether all are clean. */
    static boolean check(Map<String, String> options, List<String> directories) throws Exception {
        boolean clean = true;
        for (String directory : directories) {
            Path dir = Path.of(directory);
            History history = new History(dir);
            if (options.containsKey("--bootstrap")) {
                history.readTopics(options.get("--bootstrap"));
                history.readDeleted(dir.resolve("deleted.tsv"));
                history.writeDump(dir.resolve("topics.tsv"));
            } else {
                history.readDump(options.containsKey("--dump") ? Path.of(options.get("--dump")) : dir.resolve("topics.tsv"));
            }
            history.tellLivesApart();
            System.out.println("== " + directory);
            clean &= new Promises(history).check();
        }
        return clean;
    }

    /** Appends the group's committed offsets to a file every second. */
    static void sample(Map<String, String> options) throws Exception {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", options.get("--bootstrap"));
        properties.put("default.api.timeout.ms", "3000");
        properties.put("request.timeout.ms", "2000");
        String group = options.get("--group");
        try (Admin admin = Admin.create(properties);
                Writer out = Files.newBufferedWriter(Path.of(options.get("--out")), StandardOpenOption.CREATE, StandardOpenOption.APPEND)) {
            while (true) {
                Thread.sleep(1_000);
                try {
                    Map<TopicPartition, OffsetAndMetadata> offsets = admin
                            .listConsumerGroupOffsets(group, new ListConsumerGroupOffsetsOptions())
                            .partitionsToOffsetAndMetadata()
                            .get(4, TimeUnit.SECONDS);
                    // After the answer: what it says was so before this time.
                    long time = System.currentTimeMillis() * 1_000 + 999;
                    StringBuilder lines = new StringBuilder();
                    offsets.forEach((partition, offset) -> {
                        if (offset != null) {
                            lines.append(time).append('\t').append(partition.topic()).append('\t').append(partition.partition())
                                    .append('\t').append(offset.offset()).append('\n');
                        }
                    });
                    out.write(lines.toString());
                    out.flush();
                } catch (java.util.concurrent.ExecutionException | java.util.concurrent.TimeoutException error) {
                    System.err.println("no sample: " + error);
                }
            }
        }
    }

    /** Prints what stands on a partition, and keeps it if that is wanted. */
    static void dump(Map<String, String> options) throws Exception {
        TopicPartition partition = new TopicPartition(options.get("--topic"), Integer.parseInt(options.get("--partition")));
        String bootstrap = options.get("--bootstrap");
        long end = History.ends(bootstrap, List.of(partition)).get(partition);
        List<ConsumerRecord<byte[], byte[]>> records = new ArrayList<>();
        History.read(bootstrap, "read_uncommitted", List.of(partition), records::add);
        // After those: what is not committed by then was aborted.
        Set<Long> committed = new HashSet<>();
        History.read(bootstrap, "read_committed", List.of(partition), record -> committed.add(record.offset()));
        List<Entry> entries = records.stream().filter(record -> record.offset() < end)
                .map(record -> History.entry(record, committed.contains(record.offset()))).toList();
        System.out.println(end);
        entries.forEach(entry -> System.out.println(entry.offset + "\t" + entry.id));
        if (options.containsKey("--keep")) {
            try (Writer out = Files.newBufferedWriter(Path.of(options.get("--keep")), StandardOpenOption.CREATE, StandardOpenOption.APPEND)) {
                History.write(entries, out);
            }
        }
    }

    /** What identifies bytes: their length and 64 bits of FNV-1a. */
    static String fingerprint(byte[] bytes) {
        if (bytes == null) {
            return "-";
        }
        long hash = 0xcbf29ce484222325L;
        for (byte one : bytes) {
            hash = (hash ^ (one & 0xff)) * 0x100000001b3L;
        }
        return bytes.length + ":" + String.format("%016x", hash);
    }

    /** The lines of a ledger, split into fields; a file that is not there is empty. */
    static List<String[]> lines(Path file) throws IOException {
        List<String[]> lines = new ArrayList<>();
        if (!Files.exists(file)) {
            return lines;
        }
        try (BufferedReader reader = Files.newBufferedReader(file, StandardCharsets.UTF_8)) {
            for (String line = reader.readLine(); line != null; line = reader.readLine()) {
                lines.add(line.split("\t", -1));
            }
        }
        return lines;
    }

    /** What the generator intended. */
    record Intent(long time, String id, String outcome, int attempts, long delayMs, String fingerprint, String key, String batch, String scene,
            String ward, String word) {
        /** Whether it is that of a task that was replayed. */
        boolean isLife() {
            return id.contains(LIFE);
        }

        /** The same of a task that a campaign has replayed: what it must come to is as its target says. */
        Intent replayed(long timeMs, String campaign) {
            return new Intent(timeMs * 1_000, life(id, campaign), "", 0, 0, fingerprint, key, batch, scene, ward, word);
        }
    }

    /** Between a task and the campaign that has replayed it: each of its lives is judged as a task of its own. */
    static final String LIFE = " in ";

    /** What a task is called that a campaign has replayed. */
    static String life(String id, String campaign) {
        return campaign.isEmpty() ? id : id + LIFE + campaign;
    }

    /** The task of a life. */
    static String task(String id) {
        int at = id.indexOf(LIFE);
        return at < 0 ? id : id.substring(0, at);
    }

    /** What somebody wanted done with tasks, or of a campaign, which means dead letters by something. */
    record Order(long time, String name, String verb, String kind, Set<String> values, String means, String meant) {
        boolean fits(Intent intent) {
            return values.contains(switch (kind) {
                case "id" -> task(intent.id);
                case "batch" -> intent.batch;
                default -> intent.scene;
            });
        }

        /** Whether a campaign that begins so means a dead letter. */
        boolean means(Entry letter) {
            return switch (means) {
                case "scene" -> letter.scene.equals(meant);
                case "fingerprint" -> letter.print.equals(meant);
                default -> {
                    int at = meant.indexOf("..");
                    yield letter.timeMs >= Long.parseLong(meant.substring(0, at)) && letter.timeMs < Long.parseLong(meant.substring(at + 2));
                }
            };
        }
    }

    /** Tasks that somebody held, and let go. */
    record Hold(String name, String kind, String value, long asked, long told, boolean isTold, long released, long gone) {
        boolean fits(Intent intent) {
            return value.equals(kind.equals("key") ? intent.ward : intent.scene);
        }
    }

    /** What somebody wanted of the breakers of a target. */
    record Wish(String what, long asked, long told, boolean isTold, long over, long gone) {}

    /** A record that is to take the place of the task of its id. */
    record Round(long delayMs, String fingerprint) {}

    /** What the target saw. */
    record Attempt(long time, long steady, String id, int number, long dueMs, String key, String fingerprint, String origin, String status,
            long askedMs, long pendingMs) {}

    /** A fault; open-ended if nobody wrote down its end. */
    record Fault(int number, String kind, String process, String detail, long begin, long end) {
        boolean covers(long time, long tail) {
            return time >= begin && time <= (end == Long.MAX_VALUE ? end : end + tail);
        }
    }

    /** The end of a process. */
    record Exit(long time, String process, String why, String status) {}

    /** The group's committed offset at a time. */
    record Sample(long time, String topic, int partition, long offset) {}

    /** A record on one of retide's topics. */
    record Entry(boolean committed, String topic, int partition, long offset, long timeMs, String id, String outcome, String event,
            int attempt, int hops, String origin, String fingerprint, String campaign, int times, String scene, String print) {
        String place() {
            return topic + "/" + partition + "/" + offset;
        }

        /** The same of a task that is called so. */
        Entry of(String id) {
            return new Entry(committed, topic, partition, offset, timeMs, id, outcome, event, attempt, hops, origin, fingerprint, campaign,
                    times, scene, print);
        }

        /** The name of the campaign that has replayed the task, if one has. */
        String campaignName() {
            int at = campaign.indexOf('/');
            return at < 0 ? campaign : campaign.substring(0, at);
        }

        /** Whether a task that was replayed enters with it. */
        boolean isReplay() {
            return isParked() && !campaign.isEmpty() && attempt == 1 && hops == 0;
        }

        boolean isLetter() {
            return topic.endsWith(".dead-letters");
        }

        boolean isParked() {
            return topic.contains(".delay.");
        }
    }

    /** Everything that is known of a campaign. */
    static final class History {
        final Map<String, String> campaign = new HashMap<>();
        final Map<String, Intent> intents = new LinkedHashMap<>();
        /** The place of each acknowledged task on the retry topic. */
        final Map<String, String> acked = new HashMap<>();
        final Map<String, Order> orders = new LinkedHashMap<>();
        final List<Hold> holds = new ArrayList<>();
        final List<Wish> wishes = new ArrayList<>();
        /** The further records of tasks of which later ones take the place. */
        final Map<String, List<Round>> rounds = new HashMap<>();
        /** When what was out of attempts was let go: from when to when the command line ran. */
        final List<long[]> releases = new ArrayList<>();
        /** The commands of which the broker said that they are there. */
        final Set<String> told = new HashSet<>();
        final List<Attempt> attempts = new ArrayList<>();
        final List<Fault> faults = new ArrayList<>();
        final List<Exit> exits = new ArrayList<>();
        final List<Sample> samples = new ArrayList<>();
        final List<Entry> entries = new ArrayList<>();
        /** Tasks that an admin may have destroyed. */
        final Set<String> gone = new HashSet<>();
        /** Tasks that may be done again, since an admin destroyed what was known of them. */
        final Set<String> exempt = new HashSet<>();
        /** Records that no producer should write, and how each has to end. */
        final Map<String, String> odd = new LinkedHashMap<>();
        /** Faults of which somebody was to be told, and where they were not. */
        final Map<Integer, String> toldOf = new TreeMap<>();
        /** What was seen that belongs to no fault: the kind and the detail. */
        final List<String[]> notes = new ArrayList<>();
        final String prefix;
        /** Whether one end was promised, and not one or more. */
        final boolean isOnce;

        History(Path dir) throws IOException {
            for (String[] line : lines(dir.resolve("campaign.tsv"))) {
                campaign.put(line[0], line[1]);
            }
            prefix = campaign.getOrDefault("prefix", "retry");
            isOnce = campaign.getOrDefault("guarantee", "exactly_once").equals("exactly_once");
            for (String[] line : lines(dir.resolve("generator.tsv"))) {
                if (line[0].equals("intent")) {
                    intents.put(line[2], new Intent(Long.parseLong(line[1]), line[2], line[3], Integer.parseInt(line[4]),
                            Long.parseLong(line[5]), line[6], line.length > 7 ? line[7] : "", line.length > 8 ? line[8] : "",
                            line.length > 9 ? line[9] : "", line.length > 10 ? line[10] : "", line.length > 11 ? line[11] : ""));
                } else if (line[0].equals("ack")) {
                    acked.put(line[2], prefix + ".tasks/" + line[3] + "/" + line[4]);
                } else if (line[0].equals("round")) {
                    rounds.computeIfAbsent(line[2], id -> new ArrayList<>()).add(new Round(Long.parseLong(line[3]), line[4]));
                }
            }
            for (String file : List.of("commands.tsv", "answers.tsv")) {
                for (String[] line : lines(dir.resolve(file))) {
                    if (line[0].equals("command")) {
                        orders.put(line[2], new Order(Long.parseLong(line[1]), line[2], line[3], line[4], Set.of(line[5].split(",")),
                                line.length > 7 ? line[6] : "", line.length > 7 ? line[7] : ""));
                    } else if (line[0].equals("ack")) {
                        told.add(line[2]);
                    }
                }
            }
            for (String[] line : lines(dir.resolve("holds.tsv"))) {
                if (line[0].equals("hold")) {
                    holds.add(new Hold(line[2], line[3], line[4], Long.parseLong(line[1]), Long.parseLong(line[5]), line[6].equals("0"),
                            Long.parseLong(line[7]), Long.parseLong(line[8])));
                } else {
                    releases.add(new long[] {Long.parseLong(line[1]), Long.parseLong(line[3])});
                }
            }
            for (String[] line : lines(dir.resolve("breakers.tsv"))) {
                wishes.add(new Wish(line[0], Long.parseLong(line[1]), Long.parseLong(line[2]), line[3].equals("0"), Long.parseLong(line[4]),
                        Long.parseLong(line[5])));
            }
            for (String[] line : lines(dir.resolve("target.tsv"))) {
                String id = life(line[2], line.length > 11 ? line[11] : "");
                attempts.add(new Attempt(Long.parseLong(line[0]), Long.parseLong(line[1]), id, number(line[3]), Long.parseLong(line[4]),
                        line[5], line[6], line[7], line[8], line.length > 9 ? Long.parseLong(line[9]) : 0,
                        line.length > 10 ? Long.parseLong(line[10]) : 0));
            }
            attempts.sort(Comparator.comparingLong(Attempt::steady));
            readFaults(dir.resolve("faults.tsv"));
            for (String[] line : lines(dir.resolve("gone.tsv"))) {
                gone.add(line[1]);
            }
            for (String[] line : lines(dir.resolve("exempt.tsv"))) {
                exempt.add(line[1]);
            }
            for (String[] line : lines(dir.resolve("odd.tsv"))) {
                odd.put(line[1], line[2]);
            }
            for (String[] line : lines(dir.resolve("offsets.tsv"))) {
                samples.add(new Sample(Long.parseLong(line[0]), line[1], Integer.parseInt(line[2]), Long.parseLong(line[3])));
            }
            samples.sort(Comparator.comparingLong(Sample::time));
        }

        private void readFaults(Path file) throws IOException {
            Map<String, Long> ends = new HashMap<>();
            for (String[] line : lines(file)) {
                switch (line[0]) {
                    case "end" -> ends.put(line[1], Long.parseLong(line[2]));
                    case "exit" -> exits.add(new Exit(Long.parseLong(line[1]), line[2], line[3], line[4]));
                    case "told" -> toldOf.put(Integer.parseInt(line[1]), line[3]);
                    case "note" -> notes.add(new String[] {line[2], line[3]});
                    default -> { }
                }
            }
            for (String[] line : lines(file)) {
                if (line[0].equals("begin")) {
                    faults.add(new Fault(Integer.parseInt(line[1]), line[3], line[4], line[5], Long.parseLong(line[2]),
                            ends.getOrDefault(line[1], Long.MAX_VALUE)));
                }
            }
        }

        private static int number(String text) {
            return text.isEmpty() ? 0 : Integer.parseInt(text);
        }

        /** Reads all topics, once with and once without what was aborted. */
        void readTopics(String bootstrap) throws Exception {
            Properties properties = new Properties();
            properties.put("bootstrap.servers", bootstrap);
            List<TopicPartition> partitions = new ArrayList<>();
            try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                consumer.listTopics().forEach((topic, infos) -> {
                    if (topic.startsWith(prefix + ".")) {
                        infos.forEach(info -> partitions.add(new TopicPartition(topic, info.partition())));
                    }
                });
            }
            Map<TopicPartition, Set<Long>> committed = new HashMap<>();
            read(bootstrap, "read_committed", partitions,
                    record -> committed.computeIfAbsent(new TopicPartition(record.topic(), record.partition()), key -> new HashSet<>())
                            .add(record.offset()));
            read(bootstrap, "read_uncommitted", partitions, record -> {
                Set<Long> offsets = committed.getOrDefault(new TopicPartition(record.topic(), record.partition()), Set.of());
                entries.add(entry(record, offsets.contains(record.offset())));
            });
        }

        private static void read(String bootstrap, String isolation, List<TopicPartition> partitions,
                java.util.function.Consumer<ConsumerRecord<byte[], byte[]>> each) throws Exception {
            Properties properties = new Properties();
            properties.put("bootstrap.servers", bootstrap);
            properties.put("isolation.level", isolation);
            properties.put("enable.auto.commit", "false");
            try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                consumer.assign(partitions);
                consumer.seekToBeginning(partitions);
                Map<TopicPartition, Long> ends = ends(bootstrap, partitions);
                long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
                while (true) {
                    consumer.poll(Duration.ofMillis(200)).forEach(each);
                    boolean done = true;
                    for (Map.Entry<TopicPartition, Long> end : ends.entrySet()) {
                        done &= consumer.position(end.getKey()) >= end.getValue();
                    }
                    if (done) {
                        return;
                    }
                    if (System.nanoTime() > deadline) {
                        throw new IllegalStateException("the end of the topics was not reached, " + isolation);
                    }
                }
            }
        }

        /** The ends of the topics, also behind transactions that are still open. */
        private static Map<TopicPartition, Long> ends(String bootstrap, List<TopicPartition> partitions) {
            Properties properties = new Properties();
            properties.put("bootstrap.servers", bootstrap);
            try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
                return consumer.endOffsets(partitions);
            }
        }

        /** The name of a command in what is no text around it. */
        static final Pattern NAME = Pattern.compile("cmd-\\d+-");
        /** The place of a record on the retry topic. */
        static final Pattern ORIGIN = Pattern.compile("\"origin\":\"?([A-Za-z0-9._-]+\\.tasks)/(\\d+)/(\\d+)");
        static final Pattern PLACE = Pattern.compile("[A-Za-z0-9._-]+\\.tasks/\\d+/\\d+");
        /** What tells which task a record takes the place of, or which one has its id. */
        static final Pattern TAKES = Pattern.compile("takes the place of the task that entered at offset (\\d+)");
        static final Pattern OTHER = Pattern.compile("\\d: the task that entered at offset (\\d+)");
        static final Pattern COUNTS = Pattern.compile("\"(done|too_late|not_found|ids|found|refused)\":(\\d+|\"[^\"]*\")");
        /** The name of a campaign, likewise, and the counts of its records, each of which stands before what could be taken for it. */
        static final Pattern CAMPAIGN = Pattern.compile("rep-\\d+-");
        static final List<String> SAID = List.of("state", "replayed", "late", "unread", "out", "came_back", "failed", "delivered", "dead", "expired",
                "cancelled");
        static final Pattern INELIGIBLE = Pattern.compile("\"ineligible\":\\{([^}]*)\\}");
        static final Pattern PARTS = Pattern.compile("\"partitions\":\\[((?:\\[[-\\d,]*\\],?)*)\\]");
        /** Offsets of a chunk of marks. */
        static final long CHUNK = 16_384;

        /** What the record of a campaign says. */
        private static String said(String value) {
            StringBuilder said = new StringBuilder();
            for (String word : SAID) {
                Matcher matcher = Pattern.compile("\"" + word + "\":\"?([a-z]+|\\d+)").matcher(value);
                if (matcher.find()) {
                    said.append(word).append('=').append(matcher.group(1)).append(';');
                }
            }
            Matcher ineligible = INELIGIBLE.matcher(value);
            if (ineligible.find() && !ineligible.group(1).isEmpty()) {
                said.append(ineligible.group(1).replace("\"", "").replace(':', '=').replace(',', ';')).append(';');
            }
            Matcher parts = PARTS.matcher(value);
            if (parts.find()) {
                said.append("partitions=").append(parts.group(1).replace("],[", " ").replace("[", "").replace("]", "")).append(';');
            }
            return said.toString();
        }

        /** The offsets that a chunk of marks has, with commas between them: runs of what is not marked and of what is, in turn, or a bit for each. */
        private static String marks(long chunk, byte[] value) {
            List<String> marked = new ArrayList<>();
            if (value.length > 0 && value[0] == 1) {
                long at = chunk * CHUNK;
                boolean isMarked = false;
                for (int i = 1; i < value.length; isMarked = !isMarked) {
                    long length = 0;
                    int shift = 0;
                    boolean isLast = false;
                    while (!isLast) {
                        length |= (long) (value[i] & 0x7f) << shift;
                        shift += 7;
                        isLast = (value[i++] & 0x80) == 0;
                    }
                    for (long end = at + length; at < end; at++) {
                        if (isMarked) {
                            marked.add("" + at);
                        }
                    }
                }
            } else if (value.length > 0) {
                for (int bit = 0; bit < (value.length - 1) * 8; bit++) {
                    if ((value[1 + bit / 8] >> (bit % 8) & 1) == 1) {
                        marked.add("" + (chunk * CHUNK + bit));
                    }
                }
            }
            return String.join(",", marked);
        }

        /** How often the task of an event was replayed: the number before the name of the campaign, and a field without a value between. */
        private static int times(String value, int name) {
            boolean isThere = name >= 5 && value.charAt(name - 5) == 2 && value.charAt(name - 3) == 0 && value.charAt(name - 2) == 2;
            return isThere ? value.charAt(name - 4) >> 1 : 0;
        }

        private static Entry entry(ConsumerRecord<byte[], byte[]> record, boolean committed) {
            String key = record.key() == null ? "" : new String(record.key(), StandardCharsets.UTF_8);
            if (record.topic().endsWith(".order") && key.startsWith("replayed/")) {
                String place = key.substring("replayed/".length());
                long chunk = Long.parseLong(place.substring(place.indexOf('/') + 1));
                String marked = record.value() == null ? "" : marks(chunk, record.value());
                return new Entry(committed, record.topic(), record.partition(), record.offset(), record.timestamp(), "", marked, "mark", 0, 0,
                        place, fingerprint(record.value()), "", 0, "", "");
            }
            if (record.topic().endsWith(".commands")) {
                String value = record.value() == null ? "" : new String(record.value(), StandardCharsets.UTF_8);
                String stage = header(record, "retry-command-stage");
                if (stage.equals("campaign")) {
                    return new Entry(committed, record.topic(), record.partition(), record.offset(), record.timestamp(), find(CAMPAIGN, value),
                            said(value), stage, 0, 0, header(record, "retry-command"), fingerprint(record.value()), "", 0, "", "");
                }
                StringBuilder counts = new StringBuilder();
                Matcher matcher = COUNTS.matcher(stage.equals("ended") ? value : "");
                while (matcher.find()) {
                    counts.append(matcher.group(1)).append('=').append(matcher.group(2).replaceAll("[\\t\\n\\r]", " ")).append(';');
                }
                return new Entry(committed, record.topic(), record.partition(), record.offset(), record.timestamp(), find(NAME, value),
                        counts.toString(), stage.isEmpty() ? "request" : stage, 0, 0, header(record, "retry-command"), fingerprint(record.value()),
                        "", 0, "", "");
            }
            if (record.topic().endsWith(".events") && record.value() != null) {
                String value = new String(record.value(), StandardCharsets.ISO_8859_1);
                String event = header(record, "retry-event");
                if (event.equals("replayed")) {
                    Matcher campaign = CAMPAIGN.matcher(value);
                    boolean isNamed = campaign.find();
                    return new Entry(committed, record.topic(), record.partition(), record.offset(), record.timestamp(), header(record, "retry-id"),
                            "", event, 0, 0, "", fingerprint(record.value()), isNamed ? campaign.group() : "",
                            isNamed ? times(value, campaign.start()) : 0, "", "");
                }
                String place = event.equals("duplicate") ? find(PLACE, value) : "";
                String origin = find(NAME, value);
                if (!place.isEmpty()) {
                    Matcher takes = TAKES.matcher(value);
                    Matcher other = OTHER.matcher(value);
                    boolean isTaken = takes.find();
                    event = isTaken ? "replaced" : event;
                    String offset = isTaken ? takes.group(1) : other.find() ? other.group(1) : "";
                    origin = place.substring(0, place.lastIndexOf('/') + 1) + offset;
                }
                return new Entry(committed, record.topic(), record.partition(), record.offset(), record.timestamp(), header(record, "retry-id"),
                        place, event, 0, 0, origin, fingerprint(record.value()), "", 0, "", "");
            }
            if (record.topic().endsWith(".callbacks") && record.value() != null) {
                String value = new String(record.value(), StandardCharsets.ISO_8859_1);
                Matcher matcher = ORIGIN.matcher(value);
                String origin = matcher.find() ? matcher.group(1) + "/" + matcher.group(2) + "/" + matcher.group(3) : "";
                return new Entry(committed, record.topic(), record.partition(), record.offset(), record.timestamp(), header(record, "retry-id"),
                        header(record, "retry-outcome"), "", 0, 0, origin, fingerprint(record.value()), "", 0, "", "");
            }
            boolean isLetter = record.topic().endsWith(".dead-letters");
            return new Entry(committed, record.topic(), record.partition(), record.offset(), record.timestamp(), header(record, "retry-id"),
                    header(record, "retry-outcome"), header(record, "retry-event"), number(header(record, "retry-attempt")),
                    number(header(record, "retry-hops")), header(record, "retry-origin"), fingerprint(record.value()),
                    header(record, "retry-campaign"), number(header(record, "retry-replayed")), isLetter ? header(record, "retry-scene") : "",
                    isLetter ? header(record, "retry-fingerprint") : "");
        }

        private static String find(Pattern pattern, String text) {
            Matcher matcher = pattern.matcher(text);
            return matcher.find() ? matcher.group() : "";
        }

        private static String header(ConsumerRecord<byte[], byte[]> record, String name) {
            Header header = record.headers().lastHeader(name);
            return header == null || header.value() == null ? "" : new String(header.value(), StandardCharsets.UTF_8).replaceAll("[\\t\\n\\r]", " ");
        }

        void writeDump(Path file) throws IOException {
            try (Writer out = Files.newBufferedWriter(file)) {
                write(entries, out);
            }
        }

        static void write(List<Entry> entries, Writer out) throws IOException {
            for (Entry entry : entries) {
                out.write(String.join("\t", entry.committed ? "C" : "A", entry.topic, "" + entry.partition, "" + entry.offset,
                        "" + entry.timeMs, entry.id, entry.outcome, entry.event, "" + entry.attempt, "" + entry.hops, entry.origin,
                        entry.fingerprint, entry.campaign, "" + entry.times, entry.scene, entry.print) + "\n");
            }
        }

        /** Adds what an admin deleted. */
        void readDeleted(Path file) throws IOException {
            Set<String> places = new HashSet<>();
            entries.forEach(entry -> places.add(entry.place()));
            List<Entry> there = new ArrayList<>(entries);
            entries.clear();
            readDump(file);
            entries.removeIf(entry -> !places.add(entry.place()));
            entries.addAll(there);
        }

        void readDump(Path file) throws IOException {
            for (String[] line : lines(file)) {
                entries.add(new Entry(line[0].equals("C"), line[1], Integer.parseInt(line[2]), Long.parseLong(line[3]), Long.parseLong(line[4]),
                        line[5], line[6], line[7], number(line[8]), number(line[9]), line[10], line[11], line.length > 12 ? line[12] : "",
                        line.length > 13 ? number(line[13]) : 0, line.length > 14 ? line[14] : "", line.length > 15 ? line[15] : ""));
            }
        }

        /**
         * Gives each life of a task a name of its own: tasks and dead letters say which campaign has replayed them, and what is told of a task
         * is of its last life that had begun by then.
         */
        void tellLivesApart() {
            Map<String, Map<String, Long>> begun = new HashMap<>();
            for (Entry entry : entries) {
                if (entry.committed && (entry.event.equals("replayed") || entry.isReplay())) {
                    begun.computeIfAbsent(entry.id, id -> new TreeMap<>()).merge(entry.campaignName(), entry.timeMs, Math::min);
                }
            }
            begun.forEach((id, lives) -> {
                Intent intent = intents.get(id);
                if (intent != null) {
                    lives.forEach((campaign, time) -> intents.put(life(id, campaign), intent.replayed(time, campaign)));
                }
            });
            entries.replaceAll(entry -> {
                String name = entry.topic.substring(prefix.length() + 1);
                if (entry.isParked() || entry.isLetter() || entry.event.equals("replayed")) {
                    return entry.of(life(entry.id, entry.campaignName()));
                }
                if (!name.equals("events") && !name.equals("callbacks")) {
                    return entry;
                }
                String last = begun.getOrDefault(entry.id, Map.of()).entrySet().stream().filter(life -> life.getValue() <= entry.timeMs)
                        .max(Map.Entry.comparingByValue()).map(Map.Entry::getKey).orElse("");
                return entry.of(life(entry.id, last));
            });
        }
    }

    /** The promises, one line each. */
    static final class Promises {
        final History history;
        /** Committed records by task. */
        final Map<String, List<Entry>> callbacks = new HashMap<>();
        final Map<String, List<Entry>> deadLetters = new HashMap<>();
        final Map<String, List<Entry>> ended = new HashMap<>();
        final Map<String, List<Entry>> parked = new HashMap<>();
        final Map<String, Entry> tasks = new HashMap<>();
        /** Further records of a task. */
        final Map<String, List<Entry>> copies = new HashMap<>();
        /** The events that say that a record is no task of its own, by its place. */
        final Map<String, List<Entry>> dropped = new HashMap<>();
        /** When each task was pending, and when each was held since it was out of attempts. */
        final Map<String, List<Entry>> pending = new HashMap<>();
        final Map<String, List<Entry>> held = new HashMap<>();
        final Map<String, List<Attempt>> attempts = new HashMap<>();
        /** What is known of tasks of which later records take the place. */
        final Newcomers newcomers = new Newcomers();
        /** The odd record that a dead letter is of, by the dead letter's task: what cannot be read has no identity but its place. */
        final Map<String, String> oddIds = new HashMap<>();
        /** What is known of campaigns that replay dead letters. */
        final Replays replays = new Replays();
        /** What was written of each command. */
        final Map<String, List<Entry>> commands = new TreeMap<>();
        /** The events that follow from a command, by its name. */
        final Map<String, List<Entry>> followed = new HashMap<>();
        /** Tasks that may be done again, and have ended. */
        final Set<String> exemptEnds = new HashSet<>();
        /** Tasks that were pending, or held since they were out of attempts, more often than they can have been. */
        final Set<String> twice = new TreeSet<>();
        boolean clean = true;

        Promises(History history) {
            this.history = history;
            // Of a task that may be done again, only its end is promised.
            history.attempts.removeIf(attempt -> history.exempt.contains(attempt.id));
            // Each record of these is a task of its own until another one has its place: they have a judge of their own.
            history.attempts.removeIf(attempt -> isReplacing(attempt.id) && newcomers.attempts.add(attempt));
            for (Entry entry : history.entries) {
                if (!entry.committed) {
                    continue;
                }
                if (isReplacing(entry.id)) {
                    newcomers.add(entry, history.prefix);
                    continue;
                }
                if (history.exempt.contains(entry.id)) {
                    if (entry.topic.equals(history.prefix + ".callbacks")) {
                        exemptEnds.add(entry.id);
                    }
                    continue;
                }
                String name = entry.topic.substring(history.prefix.length() + 1);
                replays.add(entry);
                if (name.equals("callbacks")) {
                    add(callbacks, entry);
                } else if (name.equals("dead-letters")) {
                    add(deadLetters, entry);
                } else if (entry.event.equals("campaign")) {
                    add(replays.records, entry);
                } else if (name.equals("commands")) {
                    add(commands, entry);
                } else if (name.equals("events")) {
                    if (TERMINALS.contains(entry.event)) {
                        add(ended, entry);
                    }
                    switch (entry.event) {
                        case "duplicate" -> dropped.computeIfAbsent(entry.outcome, key -> new ArrayList<>()).add(entry);
                        case "pending" -> add(pending, entry);
                        case "held" -> add(held, entry);
                        default -> { }
                    }
                    if (!entry.origin.isEmpty() && !entry.event.equals("duplicate")) {
                        followed.computeIfAbsent(entry.origin, key -> new ArrayList<>()).add(entry);
                    }
                } else if (name.equals("tasks")) {
                    Intent intent = history.intents.get(entry.id);
                    boolean isOnce = intent != null && intent.scene.equals(ONCE);
                    Entry first = isOnce ? tasks.get(entry.id) : null;
                    if (first == null || first.offset > entry.offset) {
                        tasks.put(entry.id, entry);
                    }
                    if (first != null) {
                        add(copies, first.offset > entry.offset ? first : entry);
                    }
                } else if (entry.isParked()) {
                    add(parked, entry);
                }
            }
            replays.sort();
            for (Attempt attempt : history.attempts) {
                attempts.computeIfAbsent(attempt.id, key -> new ArrayList<>()).add(attempt);
            }
            Map<String, String> places = new HashMap<>();
            for (String id : history.odd.keySet()) {
                if (tasks.containsKey(id)) {
                    places.put(tasks.get(id).place(), id);
                }
            }
            deadLetters.values().forEach(letters -> letters.forEach(letter -> {
                if (places.containsKey(letter.origin)) {
                    oddIds.put(letter.id, places.get(letter.origin));
                }
            }));
        }

        /** The scenes of which something more is known. */
        static final String LATER = "chaos-later";
        static final String ONCE = "chaos-once";
        static final String SPENT = "chaos-spent";
        static final String RESTED = "chaos-rested";
        static final String FORCED = "chaos-forced";
        static final String STOPPED = "chaos-stopped";
        static final String LATEST = "chaos-latest";
        static final String KEPT = "chaos-kept";
        /** Those whose tasks wait for somebody. */
        static final Set<String> WAITS = Set.of(SPENT, RESTED, FORCED, STOPPED);
        static final Set<String> TERMINALS = Set.of("delivered", "dead", "expired", "cancelled");

        private static void add(Map<String, List<Entry>> map, Entry entry) {
            map.computeIfAbsent(entry.id, key -> new ArrayList<>()).add(entry);
        }

        boolean check() {
            lost();
            phantom();
            terminals();
            conflicting();
            callbacks();
            deadLetters();
            early();
            order();
            beyond();
            missing();
            duplicates();
            repeated();
            committed();
            backwards();
            bytes();
            keys();
            turns();
            if (!history.orders.isEmpty()) {
                commanded();
                cancelled();
                standing();
            }
            if (!history.orders.isEmpty() || history.attempts.stream().anyMatch(attempt -> attempt.pendingMs > 0)) {
                pending();
            }
            if (history.intents.values().stream().anyMatch(intent -> intent.scene.equals(ONCE))) {
                dropped();
            }
            if (!history.holds.isEmpty()) {
                held();
            }
            if (history.intents.values().stream().anyMatch(intent -> intent.scene.equals(STOPPED))) {
                stopped();
            }
            if (!history.wishes.isEmpty()) {
                forced();
            }
            if (history.intents.values().stream().anyMatch(intent -> intent.scene.equals(RESTED))) {
                rested();
            }
            if (!newcomers.records.isEmpty()) {
                replaced();
            }
            if (history.intents.values().stream().anyMatch(intent -> intent.scene.equals(SPENT))) {
                spent();
            }
            if (history.orders.values().stream().anyMatch(order -> order.verb.equals("replay")) || !replays.lives.isEmpty()) {
                replays();
                replayedOnce();
                meant();
                sums();
                paces();
                braked();
                claims();
            }
            if (!pending.isEmpty() || !held.isEmpty()) {
                promisedOnce("once", twice, "tasks pending or out of attempts " + (pending.size() + held.size()));
            }
            exits();
            lateness();
            if (!history.campaign.getOrDefault("adversary", "0").equals("0")) {
                odd();
                told();
                working();
                acts();
            }
            aborted();
            return clean;
        }

        /** Prints one promise that exactly_once makes; `broken` holds what breaks it. */
        private void promisedOnce(String name, Collection<String> broken, String figures) {
            if (history.isOnce) {
                line(name, broken, figures);
            } else {
                line(name, List.of(), figures + ", allowed " + broken.size());
            }
        }

        /** Prints one promise; `broken` holds what broke it. */
        private void line(String name, Collection<String> broken, String figures) {
            boolean ok = broken.isEmpty();
            clean &= ok;
            List<String> examples = broken.stream().limit(5).toList();
            System.out.printf("%-4s %-12s %s%s%n", ok ? "ok" : "FAIL", name, figures,
                    ok ? "" : "; broken " + broken.size() + ": " + String.join(", ", examples));
        }

        /** Every acknowledged task has an end. */
        private void lost() {
            Set<String> lost = new TreeSet<>();
            Set<String> written = new HashSet<>(history.acked.keySet());
            // A task that was written without its producer being told is a task, too.
            tasks.keySet().stream().filter(history.intents::containsKey).forEach(written::add);
            for (String id : written) {
                if (!callbacks.containsKey(id) && !exemptEnds.contains(id) && !isReplacing(id) && !history.gone.contains(id)) {
                    lost.add(id);
                }
            }
            line("lost", lost, "acknowledged " + history.acked.size() + ", written " + written.size() + ", intended " + history.intents.size());
        }

        /** Nothing happens to tasks that nobody intended. */
        private void phantom() {
            Set<String> phantoms = new TreeSet<>();
            for (Collection<String> ids : List.of(callbacks.keySet(), deadLetters.keySet(), ended.keySet(), parked.keySet(), attempts.keySet())) {
                ids.stream().filter(id -> !history.intents.containsKey(id) && !history.odd.containsKey(id) && !oddIds.containsKey(id)).forEach(phantoms::add);
            }
            line("phantom", phantoms, "tasks seen " + attempts.size());
        }

        /** No task ends more than once: no outcome has two callback records. */
        private void terminals() {
            Set<String> broken = new TreeSet<>();
            int records = 0;
            for (Map.Entry<String, List<Entry>> task : callbacks.entrySet()) {
                records += task.getValue().size();
                long outcomes = task.getValue().stream().map(Entry::outcome).distinct().count();
                if (task.getValue().size() > outcomes) {
                    broken.add(task.getKey() + " x" + task.getValue().size());
                }
            }
            promisedOnce("terminals", broken, "callback records " + records + ", tasks " + callbacks.size());
        }

        /** No task has two different ends, or another one than it must have. */
        private void conflicting() {
            Set<String> broken = new TreeSet<>();
            Map<String, Integer> outcomes = new TreeMap<>();
            callbacks.forEach((id, records) -> {
                Set<String> words = new TreeSet<>();
                records.forEach(record -> words.add(record.outcome));
                words.forEach(word -> outcomes.merge(word, 1, Integer::sum));
                Intent intent = history.intents.get(id);
                if (intent == null) {
                    return;
                }
                Set<String> others = new TreeSet<>(words);
                // What is done once more, since nobody knows that it was done, may meet a command that came since.
                if ((words.size() == 1 || !history.isOnce) && orders(intent, "cancel").findAny().isPresent()) {
                    others.remove("cancelled");
                }
                if ((words.size() == 1 || !history.isOnce) && intent.scene.equals(STOPPED)) {
                    // Where nothing ran for longer than its deadline.
                    others.remove("expired");
                }
                Set<String> allowed = intent.isLife() ? said(intent) : Set.of(intent.outcome);
                boolean isOne = others.size() == 1 && allowed.containsAll(others);
                if (!others.isEmpty() && !isOne) {
                    broken.add(id + " " + words + " not " + allowed);
                }
            });
            line("conflicting", broken, "outcomes " + outcomes);
        }

        /** How a task that was replayed may end, as its target has answered: where an attempt was made again, by either answer. */
        private Set<String> said(Intent intent) {
            Set<String> outcomes = new TreeSet<>();
            for (Attempt attempt : attempts.getOrDefault(intent.id, List.of())) {
                if (attempt.status.equals("200")) {
                    outcomes.add("delivered");
                } else if (attempt.status.equals("400") || attempt.number >= most(intent)) {
                    outcomes.add("dead");
                }
            }
            return outcomes;
        }

        /** Most attempts of a task that was replayed. */
        private int most(Intent intent) {
            return intent.scene.equals(STOPPED) ? Integer.MAX_VALUE : history.campaign.getOrDefault("backoff_ms", "0").split(",").length + 1;
        }

        /** The commands that name a task, of these verbs. */
        private java.util.stream.Stream<Order> orders(Intent intent, String... verbs) {
            return history.orders.values().stream().filter(order -> List.of(verbs).contains(order.verb) && order.fits(intent));
        }

        /** Whether an end is a bad one, which has a dead letter. */
        private static boolean isBad(Entry record) {
            return !record.outcome.equals("delivered") && !record.outcome.equals("cancelled");
        }

        /**
         * Each command that is on its topic ends once, is not refused, and counts what was done for it: exactly, but for one that names ids,
         * which goes on when it has counted. What follows from it is about tasks that it names, and is done with each of them once.
         */
        private void commanded() {
            Set<String> broken = new TreeSet<>();
            Set<String> miscounted = new TreeSet<>();
            int done = 0;
            Set<String> written = new TreeSet<>(history.told);
            commands.forEach((name, entries) -> {
                if (entries.stream().anyMatch(entry -> entry.event.equals("request"))) {
                    written.add(name);
                }
            });
            for (String name : written) {
                Order order = history.orders.get(name);
                List<Entry> ends = commands.getOrDefault(name, List.of()).stream().filter(entry -> entry.event.equals("ended")).toList();
                if (order == null || ends.isEmpty()) {
                    broken.add(name + " has not ended");
                    continue;
                }
                if (ends.size() > 1) {
                    miscounted.add(name + " ended x" + ends.size());
                }
                Map<String, String> counts = new HashMap<>();
                for (String count : ends.get(0).outcome.split(";")) {
                    int at = count.indexOf('=');
                    counts.put(at < 0 ? count : count.substring(0, at), count.substring(at + 1));
                }
                if (counts.containsKey("refused")) {
                    // What is asked of a campaign may come when that is over.
                    boolean isLate = order.kind.equals("campaign") && !order.verb.equals("replay")
                            && order.values.stream().allMatch(replays::isOver);
                    if (!isLate) {
                        broken.add(name + " refused " + counts.get("refused"));
                    }
                    continue;
                }
                long told = Long.parseLong(counts.getOrDefault("done", "-1"));
                Map<String, Integer> tasks = new TreeMap<>();
                for (Entry event : followed.getOrDefault(name, List.of())) {
                    if (!event.event.equals("too-late")) {
                        tasks.merge(event.id, 1, Integer::sum);
                        done++;
                    }
                    Intent intent = history.intents.get(event.id);
                    if (intent == null || !order.fits(intent)) {
                        broken.add(name + " " + event.event + " " + event.id + ", which it does not name");
                    }
                }
                tasks.forEach((id, times) -> {
                    if (times > 1) {
                        miscounted.add(name + " done with " + id + " x" + times);
                    }
                });
                if (order.kind.equals("id") ? told > tasks.size() : told != tasks.size()) {
                    miscounted.add(name + " says " + told + " and was done with " + tasks.size());
                }
                long ids = Long.parseLong(counts.getOrDefault("ids", "-1"));
                if (ids != (order.kind.equals("id") ? order.values.size() : 0)) {
                    miscounted.add(name + " counts " + ids + " ids");
                }
            }
            line("commanded", broken, "commands " + written.size());
            promisedOnce("counted", miscounted, "done with tasks " + done);
        }

        /**
         * A task is cancelled only where a command says so, and no attempt starts after that was written, but by a process that does not know
         * yet that it was replaced. A broker's time is in whole milliseconds.
         */
        private void cancelled() {
            Set<String> broken = new TreeSet<>();
            int count = 0;
            for (Map.Entry<String, List<Entry>> task : ended.entrySet()) {
                for (Entry end : task.getValue()) {
                    if (!end.event.equals("cancelled")) {
                        continue;
                    }
                    count++;
                    Order order = history.orders.get(end.origin);
                    if (order == null || !order.verb.equals("cancel")) {
                        broken.add(task.getKey() + " by nobody");
                    }
                    for (Attempt attempt : attempts.getOrDefault(task.getKey(), List.of())) {
                        if (attempt.time > end.timeMs * 1_000 + 1_000 && !isReplaced(attempt)) {
                            broken.add(task.getKey() + "#" + attempt.number + " after its end");
                        }
                    }
                }
            }
            promisedOnce("cancelled", broken, "tasks cancelled " + count);
        }

        /** A task that was produced when the one command that names it, a cancel, had said that it waits, is cancelled, and never attempted. */
        private void standing() {
            Set<String> broken = new TreeSet<>();
            int count = 0;
            for (Entry task : tasks.values()) {
                Intent intent = history.intents.get(task.id);
                List<Order> all = intent == null ? List.of() : orders(intent, "cancel", "run-now", "reschedule").toList();
                if (all.size() != 1 || !all.get(0).verb.equals("cancel") || !all.get(0).kind.equals("id")) {
                    continue;
                }
                boolean stood = commands.getOrDefault(all.get(0).name, List.of()).stream()
                        .anyMatch(entry -> entry.event.equals("ended") && (entry.timeMs + 1) * 1_000 < history.intents.get(task.id).time);
                if (!stood) {
                    continue;
                }
                count++;
                Set<String> words = new TreeSet<>(words(callbacks.get(task.id), Entry::outcome));
                boolean isAttempted = attempts.getOrDefault(task.id, List.of()).stream().anyMatch(attempt -> !isReplaced(attempt));
                if (!words.equals(Set.of("cancelled")) || isAttempted) {
                    broken.add(task.id + " " + words + (isAttempted ? " attempted" : ""));
                }
            }
            line("standing", broken, "tasks cancelled before they were there " + count);
        }

        /** How often somebody has said what came of a task's first attempt, beyond once: its target does each time that it sees it. */
        private int saidAgain(Intent intent) {
            return intent.scene.equals(LATER) ? Math.max(0, (int) orders(intent, "complete").count() - 1) : 0;
        }

        /**
         * What a target answers later is left alone until somebody says what came of it, or its limit has passed: it is attempted no sooner, nor
         * again when that it is pending was durable, and does not end sooner.
         */
        private void pending() {
            Set<String> broken = new TreeSet<>();
            Map<String, Integer> words = new TreeMap<>();
            for (Intent intent : history.intents.values()) {
                List<Attempt> all = attempts.getOrDefault(intent.id, List.of());
                List<Attempt> taken = all.stream().filter(attempt -> attempt.pendingMs > 0).toList();
                if (taken.isEmpty()) {
                    continue;
                }
                words.merge(intent.word, 1, Integer::sum);
                long said = orders(intent, "complete", "cancel").mapToLong(Order::time).min().orElse(Long.MAX_VALUE);
                long passed = taken.stream().mapToLong(attempt -> attempt.time + attempt.pendingMs * 1_000).min().getAsLong();
                long over = Math.min(said, passed);
                for (Attempt attempt : all) {
                    if (attempt.number > 1 && attempt.time < over) {
                        broken.add(intent.id + "#" + attempt.number + " while it is pending");
                    }
                }
                List<Entry> events = pending.getOrDefault(intent.id, List.of());
                for (Attempt attempt : taken) {
                    if (events.stream().anyMatch(event -> attempt.time > event.timeMs * 1_000 + COMMIT) && !isReplaced(attempt)) {
                        broken.add(intent.id + "#" + attempt.number + " again");
                    }
                }
                if (events.size() > 1) {
                    twice.add(intent.id + " pending x" + events.size());
                }
                for (Entry end : callbacks.getOrDefault(intent.id, List.of())) {
                    if ((end.timeMs + 1) * 1_000 < over) {
                        broken.add(intent.id + " " + end.outcome + " while it is pending");
                    }
                }
            }
            line("pending", broken, "tasks answered later " + words + ", told of " + pending.size());
        }

        /** A record of a task that has one already is told of once, and no target sees it; the first one is the task. */
        private void dropped() {
            Set<String> broken = new TreeSet<>();
            int records = 0;
            for (Map.Entry<String, List<Entry>> copies : copies.entrySet()) {
                Entry task = tasks.get(copies.getKey());
                for (Entry copy : copies.getValue()) {
                    records++;
                    int told = dropped.getOrDefault(copy.place(), List.of()).size();
                    if (told != 1) {
                        broken.add(task.id + " at " + copy.place() + " dropped x" + told);
                    }
                }
                for (Attempt attempt : attempts.getOrDefault(task.id, List.of())) {
                    if (!attempt.origin.equals(task.place())) {
                        broken.add(task.id + "#" + attempt.number + " of " + attempt.origin);
                    }
                }
            }
            for (String place : dropped.keySet()) {
                if (copies.values().stream().flatMap(List::stream).noneMatch(copy -> copy.place().equals(place))) {
                    broken.add("dropped " + place + ", which is no duplicate");
                }
            }
            line("dropped", broken, "tasks produced again " + copies.size() + ", records " + records);
        }

        /**
         * What is held is not attempted from when all shards have said that they know until it is released, but by a process that does not know
         * yet that it was replaced; then it is back within a minute, not counting the time of faults and of other holds.
         */
        private void held() {
            Set<String> broken = new TreeSet<>();
            Set<String> tasks = new HashSet<>();
            int told = 0;
            for (Hold hold : history.holds) {
                told += hold.isTold ? 1 : 0;
                for (Intent intent : history.intents.values()) {
                    if (!hold.fits(intent)) {
                        continue;
                    }
                    List<Attempt> all = attempts.getOrDefault(intent.id, List.of());
                    for (Attempt attempt : all) {
                        boolean isDuring = hold.isTold && attempt.time > hold.told + REACHED && attempt.time < hold.released;
                        if (isDuring && !isReplaced(attempt)) {
                            broken.add(intent.id + "#" + attempt.number + " held by " + hold.name);
                        }
                        boolean wasDue = attempt.dueMs * 1_000 < hold.released && attempt.time > hold.released;
                        if (!wasDue || all.stream().anyMatch(other -> other.number == attempt.number && other.time < attempt.time)) {
                            continue;
                        }
                        tasks.add(intent.id);
                        long free = free(intent, hold.gone, attempt.time);
                        if (free > BACK) {
                            broken.add(intent.id + "#" + attempt.number + " " + free / 1_000_000 + " s after " + hold.name);
                        }
                    }
                }
            }
            line("held", broken, "holds " + history.holds.size() + ", all shards knew " + told + ", tasks that waited " + tasks.size());
        }

        /**
         * A deadline stands still while its task is due and held by somebody who wants that: it expires no sooner than its deadline and that time
         * after it was produced. It does pass, when nobody holds the task. A hold that is over counts for tasks that were parked meanwhile, and for
         * those that were not attempted before, whether anybody looked at them or not: others may have been with their target.
         */
        private void stopped() {
            Set<String> broken = new TreeSet<>();
            int expired = 0;
            int outlived = 0;
            int rescued = 0;
            for (Intent intent : history.intents.values()) {
                // When the deadline of one that was replayed began is not known.
                if (!intent.scene.equals(STOPPED) || intent.isLife()) {
                    continue;
                }
                boolean isPatient = intent.outcome.equals("expired");
                for (Entry end : callbacks.getOrDefault(intent.id, List.of())) {
                    // A broker's time is in whole milliseconds.
                    long ended = (end.timeMs + 1) * 1_000;
                    long stood = history.holds.stream().filter(hold -> hold.isTold && hold.fits(intent) && counts(hold, intent, ended))
                            .mapToLong(hold -> Math.max(0, Math.min(ended, hold.released) - Math.max(intent.time, hold.told))).sum();
                    rescued += end.outcome.equals("expired") && stood > 0 ? 1 : 0;
                    if (end.outcome.equals("expired")) {
                        expired++;
                        if (ended < intent.time + DEADLINE + stood - (isPatient ? BETWEEN : 0)) {
                            broken.add(intent.id + " expired after " + (ended - intent.time) / 1_000 + " ms, held for " + stood / 1_000);
                        }
                    } else if (isPatient) {
                        broken.add(intent.id + " " + end.outcome);
                    } else if (ended > intent.time + DEADLINE) {
                        outlived++;
                    }
                    // It stands still until the task is back after a hold, too.
                    long holds = history.holds.stream().filter(hold -> hold.fits(intent) && hold.asked < ended && hold.gone > intent.time).count();
                    if (free(intent, intent.time, ended) > DEADLINE + BACK * (1 + holds)) {
                        broken.add(intent.id + " " + end.outcome + " long after its deadline");
                    }
                }
            }
            line("stopped", broken, "tasks expired " + expired + ", of which held before " + rescued + ", delivered later than they would have lived "
                    + outlived);
        }

        /** Whether a hold has to count for a task by then. */
        private boolean counts(Hold hold, Intent intent, long time) {
            boolean isNew = attempts.getOrDefault(intent.id, List.of()).stream().allMatch(attempt -> attempt.time > hold.released);
            return time < hold.released || isNew || parked.getOrDefault(intent.id, List.of()).stream()
                    .anyMatch(entry -> entry.timeMs * 1_000 > hold.told && entry.timeMs * 1_000 < hold.released);
        }

        /**
         * A target that people keep from being called is not, from when all shards have said that they know until somebody takes that back, but by
         * a process that does not know yet that it was replaced; and what waited is back within a minute, not counting the time of faults. One that
         * they want called is, though it is down, and so is one whose breakers they reset, though these were open: of the tasks that are produced
         * meanwhile, at least one in four, since faults keep some from it, where there are enough of them.
         */
        private void forced() {
            Set<String> broken = new TreeSet<>();
            Map<String, Integer> counts = new TreeMap<>();
            Set<String> waited = new HashSet<>();
            List<Intent> intents = history.intents.values().stream().filter(intent -> intent.scene.equals(FORCED)).toList();
            int told = 0;
            Map<String, int[]> called = new TreeMap<>();
            for (Wish wish : history.wishes) {
                counts.merge(wish.what, 1, Integer::sum);
                told += wish.isTold ? 1 : 0;
                for (Intent intent : intents) {
                    List<Attempt> all = attempts.getOrDefault(intent.id, List.of());
                    if (!wish.what.equals("open")) {
                        if (wish.isTold && intent.time > wish.told + REACHED && intent.time < wish.over - CALLED) {
                            boolean isCalled = all.stream().anyMatch(attempt -> attempt.time < wish.over);
                            boolean isAway = history.faults.stream().anyMatch(fault -> fault.kind.equals("broker") && fault.covers(intent.time, TAIL));
                            int[] calls = called.computeIfAbsent(wish.what, what -> new int[2]);
                            calls[0] += isCalled ? 1 : 0;
                            calls[1] += isCalled || !isAway ? 1 : 0;
                        }
                        continue;
                    }
                    for (Attempt attempt : all) {
                        boolean isDuring = wish.isTold && attempt.time > wish.told + REACHED && attempt.time < wish.over;
                        if (isDuring && !isReplaced(attempt)) {
                            broken.add(intent.id + "#" + attempt.number + " called though that is not wanted");
                        }
                        boolean wasDue = attempt.dueMs * 1_000 < wish.over && attempt.time > wish.over;
                        if (wasDue && all.stream().noneMatch(other -> other.number == attempt.number && other.time < attempt.time)) {
                            waited.add(intent.id);
                            long free = free(intent, wish.gone, attempt.time);
                            if (free > BACK) {
                                broken.add(intent.id + "#" + attempt.number + " " + free / 1_000_000 + " s later");
                            }
                        }
                    }
                }
            }
            StringBuilder figures = new StringBuilder();
            called.forEach((what, calls) -> {
                figures.append(", of " + calls[1] + " tasks produced after " + what + " called at once " + calls[0]);
                if (calls[1] >= ENOUGH && 4 * calls[0] < calls[1]) {
                    broken.add(calls[0] + " of " + calls[1] + " called after " + what);
                }
            });
            line("forced", broken, "wishes " + counts + ", all shards knew " + told + ", tasks that waited " + waited.size() + figures);
        }

        /** What is seen of tasks of which later records take the place, by the places of the records. */
        static final class Newcomers {
            final List<Attempt> attempts = new ArrayList<>();
            /** The records of each task. */
            final Map<String, List<Entry>> records = new TreeMap<>();
            /** The ends of each record. */
            final Map<String, List<Entry>> ends = new HashMap<>();
            /** The events that another record has its place, or takes it. */
            final Map<String, List<Entry>> over = new HashMap<>();
            /** The records of which each one has taken the place. */
            final Map<String, Set<String>> before = new HashMap<>();
            /** The records that wait in tiers. */
            final Map<String, List<Entry>> parked = new HashMap<>();

            void add(Entry entry, String prefix) {
                String name = entry.topic.substring(prefix.length() + 1);
                if (name.equals("tasks")) {
                    records.computeIfAbsent(entry.id, id -> new ArrayList<>()).add(entry);
                } else if (name.equals("callbacks")) {
                    ends.computeIfAbsent(entry.origin, place -> new ArrayList<>()).add(entry);
                } else if (entry.event.equals("replaced")) {
                    over.computeIfAbsent(entry.origin, place -> new ArrayList<>()).add(entry);
                    before.computeIfAbsent(entry.outcome, place -> new TreeSet<>()).add(entry.origin);
                } else if (entry.event.equals("duplicate")) {
                    over.computeIfAbsent(entry.outcome, place -> new ArrayList<>()).add(entry);
                } else if (entry.isParked()) {
                    parked.computeIfAbsent(entry.origin, place -> new ArrayList<>()).add(entry);
                }
            }

            /** Those of which this one has taken the place, and those of which they have. */
            Set<String> ancestors(String place) {
                Set<String> all = new TreeSet<>();
                for (String older : before.getOrDefault(place, Set.of())) {
                    if (all.add(older)) {
                        all.addAll(ancestors(older));
                    }
                }
                return all;
            }

            /** When the first consequence of a record was written, in microseconds. */
            long consequence(Entry entry) {
                String place = entry.isParked() ? entry.origin : entry.place();
                java.util.stream.Stream<Entry> later = parked.getOrDefault(place, List.of()).stream().filter(other -> !entry.isParked()
                        || other.attempt > entry.attempt || (other.attempt == entry.attempt && other.hops > entry.hops));
                java.util.stream.Stream<Entry> last = java.util.stream.Stream.of(ends, over)
                        .flatMap(map -> map.getOrDefault(place, List.of()).stream());
                return java.util.stream.Stream.concat(later, last).mapToLong(other -> other.timeMs * 1_000).min().orElse(Long.MAX_VALUE);
            }

            /** The next attempt that was written of these records before this time. */
            int next(Set<String> places, long timeMs) {
                return places.stream().flatMap(place -> parked.getOrDefault(place, List.of()).stream()).filter(entry -> entry.timeMs <= timeMs)
                        .mapToInt(Entry::attempt).max().orElse(1);
            }
        }

        /**
         * Where later records of an id take the place of its task, each record either ends, delivered, or another one that came later has its
         * place: one of both, once, and the last record ends. No attempt of a record starts once that is written, or after one of a later record,
         * but by a process that does not know yet that it was replaced. What the target sees is the payload of that record. With keep-due, a record
         * has the schedule of the one before it and counts its attempts on; else it has its own, and begins anew.
         */
        private void replaced() {
            Set<String> broken = new TreeSet<>();
            int records = 0;
            int taken = 0;
            Map<String, Integer> attempted = new TreeMap<>();
            Map<String, List<Attempt>> byId = new HashMap<>();
            newcomers.attempts.forEach(attempt -> byId.computeIfAbsent(attempt.id, id -> new ArrayList<>()).add(attempt));
            for (Map.Entry<String, List<Entry>> task : newcomers.records.entrySet()) {
                Intent intent = history.intents.get(task.getKey());
                List<Entry> all = task.getValue();
                all.sort(Comparator.comparingLong(Entry::offset));
                Map<String, Entry> places = new HashMap<>();
                all.forEach(entry -> places.put(entry.place(), entry));
                for (Entry entry : all) {
                    records++;
                    String name = entry.id + " at " + entry.place();
                    List<Entry> ends = newcomers.ends.getOrDefault(entry.place(), List.of());
                    List<Entry> over = newcomers.over.getOrDefault(entry.place(), List.of());
                    taken += over.size();
                    if (ends.size() + over.size() != 1) {
                        broken.add(name + " ended x" + ends.size() + " replaced x" + over.size());
                    }
                    ends.stream().filter(end -> !end.outcome.equals("delivered")).forEach(end -> broken.add(name + " " + end.outcome));
                    for (Entry event : over) {
                        Entry other = places.get(event.event.equals("replaced") ? event.outcome : event.origin);
                        if (other == null || other.offset <= entry.offset) {
                            broken.add(name + " replaced by no later one");
                        }
                    }
                }
                long latest = -1;
                Map<String, Attempt> firsts = new HashMap<>();
                Set<String> seen = new HashSet<>();
                for (Attempt attempt : byId.getOrDefault(intent.id, List.of())) {
                    String name = intent.id + "#" + attempt.number + " of " + attempt.origin;
                    Entry entry = places.get(attempt.origin);
                    if (entry == null || !entry.fingerprint.equals(attempt.fingerprint) || !attempt.key.equals(intent.id)) {
                        broken.add(name + " with another payload, or key");
                        continue;
                    }
                    boolean isOver = newcomers.over.getOrDefault(entry.place(), List.of()).stream()
                            .anyMatch(event -> attempt.time > (event.timeMs + 1) * 1_000);
                    isOver |= newcomers.ends.getOrDefault(entry.place(), List.of()).stream().anyMatch(end -> attempt.time > end.timeMs * 1_000 + COMMIT);
                    if ((isOver || entry.offset < latest) && !isReplaced(attempt)) {
                        broken.add(name + " though another one has its place, or it has ended");
                    }
                    latest = Math.max(latest, entry.offset);
                    if (firsts.putIfAbsent(attempt.origin + "#" + attempt.number, attempt) == null) {
                        Set<String> before = intent.scene.equals(KEPT) ? newcomers.ancestors(attempt.origin) : Set.of();
                        scheduled(intent, attempt, before, firsts).ifPresent(what -> broken.add(name + " " + what));
                        if (seen.add(attempt.origin) && newcomers.before.containsKey(attempt.origin)) {
                            attempted.merge(intent.scene + (attempt.number > 1 ? " going on" : ""), 1, Integer::sum);
                        }
                    }
                }
            }
            line("replaced", broken, "tasks produced again " + newcomers.records.size() + ", records " + records + ", replaced " + taken
                    + ", attempts newcomers begin with " + attempted);
        }

        /** What is wrong with the schedule of a first attempt of this number of a record, which has those before it in its place. */
        private java.util.Optional<String> scheduled(Intent intent, Attempt attempt, Set<String> before, Map<String, Attempt> firsts) {
            long[] backoff = Arrays.stream(history.campaign.getOrDefault("backoff_ms", "0").split(",")).mapToLong(Long::parseLong).toArray();
            long since = before.isEmpty() ? 0 : newcomers.over.values().stream().flatMap(List::stream)
                    .filter(event -> event.event.equals("replaced") && event.outcome.equals(attempt.origin)).mapToLong(Entry::timeMs).min().orElse(0);
            if (attempt.number < newcomers.next(before, since)) {
                return java.util.Optional.of("begins anew");
            }
            if (attempt.number == 1) {
                Set<Long> dues = dues(intent, attempt.origin);
                return dues.contains(attempt.dueMs) && attempt.time >= attempt.dueMs * 1_000 ? java.util.Optional.empty()
                        : java.util.Optional.of("due at " + attempt.dueMs + " and not " + dues);
            }
            Set<String> line = new TreeSet<>(before);
            line.add(attempt.origin);
            long earliest = line.stream().map(place -> firsts.get(place + "#" + (attempt.number - 1))).filter(java.util.Objects::nonNull)
                    .mapToLong(other -> other.time + backoff[Math.min(attempt.number - 2, backoff.length - 1)] * 1_000).min().orElse(Long.MAX_VALUE);
            return attempt.time >= earliest ? java.util.Optional.empty() : java.util.Optional.of("before its backoff, or the attempt before it");
        }

        /**
         * When the first attempt of a record may be due: when its producer wants it, or, with keep-due, when that is so of the one that it has the
         * place of. One that waited for a call, and never had the place itself, has no schedule to give.
         */
        private Set<Long> dues(Intent intent, String place) {
            Set<Long> dues = new TreeSet<>();
            boolean mayBeOwn = true;
            if (intent.scene.equals(KEPT)) {
                for (String older : newcomers.before.getOrDefault(place, Set.of())) {
                    dues.addAll(dues(intent, older));
                    mayBeOwn &= !newcomers.parked.containsKey(older);
                }
            }
            for (Entry entry : newcomers.records.get(intent.id)) {
                if (mayBeOwn && entry.place().equals(place)) {
                    long delay = history.rounds.getOrDefault(intent.id, List.of()).stream().filter(round -> round.fingerprint.equals(entry.fingerprint))
                            .mapToLong(Round::delayMs).findAny().orElse(intent.delayMs);
                    dues.add(entry.timeMs + delay);
                }
            }
            return dues;
        }

        /**
         * A target that asks for rest gets it from the whole group: of as many tasks as are produced meanwhile, fewer than half are attempted. What
         * one process tells the others of it is advice, so that each may hear it from the target itself, and so may one that has just started.
         */
        private void rested() {
            Set<String> broken = new TreeSet<>();
            List<Attempt> all = history.attempts.stream()
                    .filter(attempt -> history.intents.containsKey(attempt.id) && history.intents.get(attempt.id).scene.equals(RESTED)).toList();
            int rests = 0;
            int met = 0;
            int produced = 0;
            long until = 0;
            for (Attempt attempt : all) {
                if (attempt.askedMs == 0 || attempt.time < until) {
                    continue;
                }
                rests++;
                long from = attempt.time + HEARD;
                // It asks for whole seconds.
                long to = attempt.time + attempt.askedMs * 1_000 - 1_000_000;
                until = to + 1_000_000;
                met += (int) all.stream().filter(other -> other.time > from && other.time < to).count();
                produced += (int) history.intents.values().stream()
                        .filter(intent -> intent.scene.equals(RESTED) && intent.time > from && intent.time < to).count();
            }
            if (2 * met > produced) {
                broken.add(met + " attempts while a target rested");
            }
            line("rested", broken, "rests " + rests + ", tasks produced meanwhile " + produced + ", attempts " + met);
        }

        /** Whether later records of this task take its place. */
        private boolean isReplacing(String id) {
            Intent intent = history.intents.get(id);
            return intent != null && (intent.scene.equals(LATEST) || intent.scene.equals(KEPT));
        }

        private boolean mayBeHeld(Intent intent) {
            return WAITS.contains(intent.scene) || history.holds.stream().anyMatch(hold -> hold.fits(intent));
        }

        /** How much of this time is of no fault, and in no hold of the task. */
        private long free(Intent intent, long from, long to) {
            long free = 0;
            for (long time = from; time < to; time += STEP) {
                long at = time;
                boolean isHeld = history.holds.stream().anyMatch(hold -> hold.fits(intent) && at >= hold.asked && at <= hold.gone)
                        || (intent.scene.equals(FORCED) && history.wishes.stream().anyMatch(wish -> at >= wish.asked && at <= wish.gone));
                boolean isFault = history.faults.stream().anyMatch(fault -> fault.covers(at, TAIL));
                free += isHeld || isFault ? 0 : STEP;
            }
            return free;
        }

        /**
         * A task that is out of attempts is held, which is told, and not attempted again before somebody has let it go since: a release counts for
         * what was out of attempts before it.
         */
        private void spent() {
            Set<String> broken = new TreeSet<>();
            int rounds = 0;
            for (Intent intent : history.intents.values()) {
                if (!intent.scene.equals(SPENT)) {
                    continue;
                }
                Map<Integer, Attempt> firsts = new TreeMap<>();
                attempts.getOrDefault(intent.id, List.of()).forEach(attempt -> firsts.putIfAbsent(attempt.number, attempt));
                int expected = 0;
                for (int number = SPENT_ATTEMPTS; number < intent.attempts; number += SPENT_ATTEMPTS) {
                    expected++;
                    Attempt last = firsts.get(number);
                    Attempt next = firsts.get(number + 1);
                    if (last == null || next == null) {
                        continue;
                    }
                    if (history.releases.stream().noneMatch(release -> release[0] <= next.time && release[1] >= last.time)) {
                        broken.add(intent.id + "#" + next.number + " let go by nobody");
                    }
                }
                int told = held.getOrDefault(intent.id, List.of()).size();
                if (told > expected) {
                    twice.add(intent.id + " held x" + told + " of " + expected);
                } else if (callbacks.containsKey(intent.id) && told < expected) {
                    broken.add(intent.id + " held x" + told + " of " + expected);
                }
                rounds += expected;
            }
            line("spent", broken, "tasks held when they were out of attempts " + held.size() + ", times " + rounds + ", releases "
                    + history.releases.size());
        }

        /** A life of a task that campaigns have replayed: the how manieth, and by which. */
        static final class Life {
            final String task;
            final int times;
            final String campaign;
            /** The records with which it entered, and the events that say so. */
            final List<Entry> entered = new ArrayList<>();
            final List<Entry> told = new ArrayList<>();

            Life(String task, int times, String campaign) {
                this.task = task;
                this.times = times;
                this.campaign = campaign;
            }

            /** What the one before left. */
            String letter() {
                return task + "#" + (times - 1);
            }

            /** When it began, in milliseconds: the earliest that is known of it. */
            long began() {
                return java.util.stream.Stream.of(entered, told).flatMap(List::stream).mapToLong(Entry::timeMs).min().orElse(Long.MAX_VALUE);
            }

            @Override
            public String toString() {
                return life(task, campaign) + " x" + times;
            }
        }

        /** What is known of campaigns that replay dead letters. */
        static final class Replays {
            /** The records of each campaign. */
            final Map<String, List<Entry>> records = new TreeMap<>();
            /** What was replayed. */
            final Map<String, Life> lives = new TreeMap<>();
            /** The same, by the letters. */
            final Map<String, List<Life>> byLetter = new HashMap<>();
            /** The dead letters, by their task and how often that was replayed before. */
            final Map<String, List<Entry>> letters = new HashMap<>();
            /** How often tasks were attempted, and that failed, as events tell. */
            final Map<String, Integer> failed = new HashMap<>();
            /** The last record of each chunk of marks. */
            final Map<String, Entry> marks = new HashMap<>();

            void add(Entry entry) {
                boolean isTold = entry.event.equals("replayed");
                if (isTold || entry.isReplay()) {
                    String task = task(entry.id);
                    String name = task + "#" + entry.times + LIFE + entry.campaignName();
                    Life life = lives.computeIfAbsent(name, key -> new Life(task, entry.times, entry.campaignName()));
                    (isTold ? life.told : life.entered).add(entry);
                } else if (entry.isLetter()) {
                    letters.computeIfAbsent(task(entry.id) + "#" + entry.times, key -> new ArrayList<>()).add(entry);
                } else if (entry.event.equals("mark")) {
                    marks.merge(entry.origin, entry, (one, other) -> one.offset > other.offset ? one : other);
                } else if (entry.event.equals("failed")) {
                    failed.merge(entry.id, 1, Integer::sum);
                }
            }

            /** All is known: what is asked for often is sorted and found once. */
            void sort() {
                records.values().forEach(entries -> entries.sort(Comparator.comparingLong(Entry::offset)));
                lives.values().forEach(life -> byLetter.computeIfAbsent(life.letter(), key -> new ArrayList<>()).add(life));
            }

            /** The records of a campaign, in their order. */
            List<Entry> of(String campaign) {
                return records.getOrDefault(campaign, List.of());
            }

            /** What the last record of a campaign says; nothing if there is none. */
            Said last(String campaign) {
                List<Entry> all = of(campaign);
                return all.isEmpty() ? new Said("") : new Said(all.get(all.size() - 1).outcome);
            }

            boolean isOver(String campaign) {
                Said last = last(campaign);
                return last.state().equals("done") || (last.state().equals("aborted") && last.count("out") == 0);
            }

            /** The letters that were replayed: where they stand. */
            Set<String> places(Life life) {
                Set<String> places = new TreeSet<>();
                letters.getOrDefault(life.letter(), List.of()).forEach(letter -> places.add(letter.partition + "/" + letter.offset));
                return places;
            }

            /** The letters that are marked as replayed: where they stand. */
            Set<String> marked() {
                Set<String> marked = new TreeSet<>();
                marks.forEach((chunk, entry) -> {
                    for (String offset : entry.outcome.split(",")) {
                        if (!offset.isEmpty()) {
                            marked.add(chunk.substring(0, chunk.indexOf('/')) + "/" + offset);
                        }
                    }
                });
                return marked;
            }
        }

        /** What a record of a campaign says. */
        static final class Said {
            private final Map<String, String> words = new TreeMap<>();

            Said(String text) {
                for (String word : text.split(";")) {
                    int at = word.indexOf('=');
                    if (at > 0) {
                        words.put(word.substring(0, at), word.substring(at + 1));
                    }
                }
            }

            String state() {
                return words.getOrDefault("state", "");
            }

            long count(String word) {
                return Long.parseLong(words.getOrDefault(word, "0"));
            }

            /** Letters that it means and has not replayed. */
            long ineligible() {
                return List.of("replayed-before", "replayed-too-often", "payload-omitted", "no-task", "died-again", "in-campaign", "refused", "edit-failed")
                        .stream().mapToLong(this::count).sum();
            }

            /** How far it is in each partition: the next offset, and the first one that it does not mean any more. */
            Map<Integer, long[]> parts() {
                Map<Integer, long[]> parts = new TreeMap<>();
                for (String part : words.getOrDefault("partitions", "").split(" ")) {
                    String[] numbers = part.split(",");
                    if (numbers.length == 3) {
                        parts.put(Integer.parseInt(numbers[0]), new long[] {Long.parseLong(numbers[1]), Long.parseLong(numbers[2])});
                    }
                }
                return parts;
            }

            /** Whether a letter that it means is its own: no later campaign may replay it. */
            boolean claims(Entry letter) {
                long[] part = parts().get(letter.partition);
                return Set.of("running", "paused", "stopped").contains(state()) && part != null && letter.offset >= part[0] && letter.offset < part[1];
            }
        }

        /** The request of each campaign, by its name. */
        private Map<String, Order> starts() {
            Map<String, Order> starts = new TreeMap<>();
            history.orders.values().stream().filter(order -> order.verb.equals("replay"))
                    .forEach(order -> order.values.forEach(name -> starts.put(name, order)));
            return starts;
        }

        /** How the lives that a campaign has begun have ended. */
        private Map<String, Integer> ends(String campaign) {
            Map<String, Integer> ends = new TreeMap<>();
            for (Life life : replays.lives.values()) {
                if (life.campaign.equals(campaign)) {
                    callbacks.getOrDefault(life(life.task, campaign), List.of()).forEach(end -> ends.merge(end.outcome, 1, Integer::sum));
                }
            }
            return ends;
        }

        /**
         * What is replayed is a dead letter that its campaign means, in its own partition: its task, the event and the mark of the letter belong
         * together, none of them stands alone, and the task ends.
         */
        private void replays() {
            Set<String> broken = new TreeSet<>();
            Map<String, Order> starts = starts();
            Set<String> marked = replays.marked();
            Set<String> open = new TreeSet<>(marked);
            Map<String, Integer> times = new TreeMap<>();
            for (Life life : replays.lives.values()) {
                times.merge("x" + life.times, 1, Integer::sum);
                if (life.entered.isEmpty() || life.told.isEmpty()) {
                    broken.add(life + (life.entered.isEmpty() ? " is told of, and has no task" : " is not told of"));
                }
                Order start = starts.get(life.campaign);
                List<Entry> letters = replays.letters.getOrDefault(life.letter(), List.of());
                if (start == null || letters.stream().noneMatch(start::means)) {
                    broken.add(life + (start == null ? " by nobody" : letters.isEmpty() ? " has no dead letter" : " is not meant"));
                }
                if (letters.stream().noneMatch(letter -> marked.contains(letter.partition + "/" + letter.offset))) {
                    broken.add(life + " is not marked");
                }
                open.removeAll(replays.places(life));
                Set<String> places = new TreeSet<>(words(replays.records.get(life.campaign), entry -> life.campaign + "/" + entry.origin));
                for (Entry entry : life.entered) {
                    boolean isAfter = letters.stream().anyMatch(letter -> letter.partition == entry.partition && letter.timeMs <= entry.timeMs);
                    if (!isAfter || !places.equals(Set.of(entry.campaign))) {
                        broken.add(life + (isAfter ? " bears " + entry.campaign + " of " + places : " before its letter, or elsewhere"));
                    }
                }
                if (!callbacks.containsKey(life(life.task, life.campaign))) {
                    broken.add(life + " has not ended");
                }
            }
            open.forEach(place -> broken.add(place + " is marked, and was not replayed"));
            line("replays", broken, "letters replayed " + replays.lives.size() + " " + times + ", marked " + marked.size());
        }

        /** Each dead letter is replayed once at most, by one campaign, which replays those of a partition in their order. */
        private void replayedOnce() {
            Set<String> broken = new TreeSet<>();
            Map<String, Life> letters = new HashMap<>();
            Map<String, List<Entry>> lines = new TreeMap<>();
            for (Life life : replays.lives.values()) {
                if (life.entered.size() > 1 || life.told.size() > 1) {
                    broken.add(life + " entered x" + life.entered.size() + " told x" + life.told.size());
                }
                Life other = letters.put(life.letter(), life);
                if (other != null) {
                    broken.add(life + " and " + other);
                }
                for (Entry entry : life.entered) {
                    lines.computeIfAbsent(life.campaign + " " + entry.topic + "/" + entry.partition, key -> new ArrayList<>()).add(entry);
                }
            }
            lines.forEach((name, line) -> {
                line.sort(Comparator.comparingLong(Entry::offset));
                long last = -1;
                for (Entry entry : line) {
                    String letter = task(entry.id) + "#" + (entry.times - 1);
                    long at = replays.letters.getOrDefault(letter, List.of()).stream().mapToLong(Entry::offset).max().orElse(Long.MAX_VALUE);
                    if (at < last) {
                        broken.add(entry.id + " behind a later letter");
                    }
                    last = at;
                }
            });
            promisedOnce("letters", broken, "letters replayed " + letters.size() + ", campaigns and partitions " + lines.size());
        }

        /**
         * Each campaign begins, and is over. One that is done has taken all letters that it means and that stood there: it has replayed each of
         * them, or another one had, or an earlier one that was not over meant it, too; and it has counted as many.
         */
        private void meant() {
            Set<String> broken = new TreeSet<>();
            Map<String, Integer> states = new TreeMap<>();
            int all = 0;
            for (Map.Entry<String, Order> start : starts().entrySet()) {
                String name = start.getKey();
                Said last = replays.last(name);
                states.merge(last.state(), 1, Integer::sum);
                if (!replays.isOver(name)) {
                    broken.add(name + " is not over: " + last.words);
                }
                if (!last.state().equals("done")) {
                    continue;
                }
                long meant = 0;
                for (Entry letter : (Iterable<Entry>) replays.letters.values().stream().flatMap(List::stream)::iterator) {
                    long[] part = last.parts().get(letter.partition);
                    if (part == null || letter.offset >= part[1] || !start.getValue().means(letter)) {
                        continue;
                    }
                    meant++;
                    if (!isTaken(name, letter)) {
                        broken.add(letter.id + " at " + letter.partition + "/" + letter.offset + " is left by " + name);
                    }
                }
                all += meant;
                if (meant != last.count("replayed") + last.ineligible()) {
                    broken.add(name + " means " + meant + ": " + last.words);
                }
            }
            line("meant", broken, "campaigns " + states + ", letters that those mean " + all);
        }

        /** Whether a campaign that is done may leave a letter behind that it means. */
        private boolean isTaken(String campaign, Entry letter) {
            String name = task(letter.id) + "#" + letter.times;
            List<Entry> records = replays.of(campaign);
            long done = records.get(records.size() - 1).timeMs;
            boolean isReplayed = replays.byLetter.getOrDefault(name, List.of()).stream().anyMatch(life -> life.began() <= done + SAME);
            boolean isOfThis = letter.campaignName().equals(campaign);
            return isReplayed || isOfThis || letter.times >= MOST_REPLAYS || claimants(campaign, letter).stream().anyMatch(other -> {
                List<Entry> others = replays.of(other);
                return others.get(others.size() - 1).timeMs >= records.get(0).timeMs;
            });
        }

        /** Campaigns that began before this one and mean a letter, too. */
        private List<String> claimants(String campaign, Entry letter) {
            List<Entry> records = replays.of(campaign);
            return starts().entrySet().stream()
                    .filter(start -> !start.getKey().equals(campaign) && start.getValue().means(letter) && !letter.campaignName().equals(start.getKey()))
                    .map(Map.Entry::getKey)
                    .filter(other -> !records.isEmpty() && !replays.of(other).isEmpty() && before(replays.of(other).get(0), records.get(0))).toList();
        }

        /** Whether the request of a campaign stands before that of another one: time, partition, offset. */
        private static boolean before(Entry one, Entry other) {
            long[] first = Arrays.stream(one.origin.split("/")).mapToLong(Long::parseLong).toArray();
            long[] second = Arrays.stream(other.origin.split("/")).mapToLong(Long::parseLong).toArray();
            return Arrays.compare(first, second) < 0;
        }

        /** What the last record of a campaign counts is what stands on the topics. */
        private void sums() {
            Set<String> broken = new TreeSet<>();
            long sum = 0;
            Map<String, Long> why = new TreeMap<>();
            for (String name : starts().keySet()) {
                Said last = replays.last(name);
                List<Life> lives = replays.lives.values().stream().filter(life -> life.campaign.equals(name)).toList();
                sum += last.count("replayed");
                for (String reason : List.of("replayed-before", "in-campaign", "died-again")) {
                    why.merge(reason, last.count(reason), Long::sum);
                }
                if (last.count("replayed") != lives.size() || last.count("out") != 0) {
                    broken.add(name + " has replayed " + lives.size() + ": " + last.words);
                }
                Map<String, Integer> ends = ends(name);
                for (String word : TERMINALS) {
                    if (last.count(word) != ends.getOrDefault(word, 0)) {
                        broken.add(name + " " + word + " " + ends + ": " + last.words);
                    }
                }
                // Of what expires or is cancelled nobody knows here whether an attempt had come back.
                long failed = lives.stream().mapToLong(life -> replays.failed.getOrDefault(life(life.task, name), 0)).sum();
                long least = failed + ends.getOrDefault("delivered", 0) + ends.getOrDefault("dead", 0);
                long most = least + ends.getOrDefault("expired", 0) + ends.getOrDefault("cancelled", 0);
                if (last.count("came_back") < least || last.count("came_back") > most) {
                    broken.add(name + " came_back " + least + " to " + most + ": " + last.words);
                }
                if (last.count("failed") < failed + ends.getOrDefault("dead", 0) || last.count("failed") > most - ends.getOrDefault("delivered", 0)) {
                    broken.add(name + " failed " + failed + " and " + ends + ": " + last.words);
                }
                if (last.ineligible() != last.count("replayed-before") + last.count("in-campaign") + last.count("died-again")
                        + last.count("replayed-too-often")) {
                    broken.add(name + " has no reason for that: " + last.words);
                }
            }
            promisedOnce("sums", broken, "replayed " + sum + ", not replayed " + why);
        }

        /** A campaign replays while it runs and never otherwise, does not go back, and is not taken up again when it is over. */
        private void paces() {
            Set<String> broken = new TreeSet<>();
            int records = 0;
            Map<String, Integer> states = new TreeMap<>();
            for (String name : replays.records.keySet()) {
                Said before = new Said("state=running");
                for (Entry entry : replays.of(name)) {
                    records++;
                    Said now = new Said(entry.outcome);
                    long more = now.count("replayed") - before.count("replayed");
                    if (!now.state().equals(before.state())) {
                        states.merge(now.state(), 1, Integer::sum);
                    }
                    if (more < 0 || (more > 0 && !now.state().equals("running"))) {
                        broken.add(name + " replays " + more + " while it is " + now.state());
                    }
                    for (Map.Entry<Integer, long[]> part : before.parts().entrySet()) {
                        long[] next = now.parts().get(part.getKey());
                        if (next == null || next[0] < part.getValue()[0] || next[1] != part.getValue()[1]) {
                            broken.add(name + " goes back in " + part.getKey());
                        }
                    }
                    if (Set.of("done", "aborted").contains(before.state()) && !now.state().equals(before.state())) {
                        broken.add(name + " is " + now.state() + " after it was " + before.state());
                    }
                    before = now;
                }
            }
            promisedOnce("paces", broken, "records of campaigns " + records + ", which came to be " + states);
        }

        /** A campaign whose attempts all fail stops by itself. */
        private void braked() {
            Set<String> broken = new TreeSet<>();
            int stopped = 0;
            for (String name : replays.records.keySet()) {
                for (Entry entry : replays.of(name)) {
                    Said said = new Said(entry.outcome);
                    if (!said.state().equals("running")) {
                        stopped += said.state().equals("stopped") ? 1 : 0;
                        break;
                    }
                    if (said.count("came_back") >= BRAKED && said.count("failed") == said.count("came_back")) {
                        broken.add(name + " goes on although " + said.count("failed") + " have failed");
                        break;
                    }
                }
            }
            line("braked", broken, "campaigns that stopped by themselves first of all " + stopped);
        }

        /** No campaign replays a letter that an earlier one means which is not over and has not come to it. */
        private void claims() {
            Set<String> broken = new TreeSet<>();
            Set<String> others = new TreeSet<>();
            for (Life life : replays.lives.values()) {
                for (Entry letter : replays.letters.getOrDefault(life.letter(), List.of())) {
                    for (String other : claimants(life.campaign, letter)) {
                        others.add(other);
                        List<Entry> records = replays.of(other);
                        // Around it, as far as clocks say.
                        java.util.Optional<Entry> before = records.stream().filter(entry -> entry.timeMs < life.began() - SAME).reduce((one, next) -> next);
                        java.util.Optional<Entry> after = records.stream().filter(entry -> entry.timeMs > life.began() + SAME).findFirst();
                        if (before.isPresent() && after.isPresent() && new Said(before.get().outcome).claims(letter)
                                && new Said(after.get().outcome).claims(letter)) {
                            broken.add(life + " is of " + other);
                        }
                    }
                }
            }
            line("claims", broken, "campaigns that meant letters of later ones " + others.size());
        }

        /** Every end has a callback record, and every callback record an end. */
        private void callbacks() {
            Set<String> broken = new TreeSet<>();
            int ends = 0;
            Set<String> ids = new TreeSet<>(callbacks.keySet());
            ids.addAll(ended.keySet());
            for (String id : ids) {
                List<String> events = words(ended.get(id), Entry::event);
                List<String> records = words(callbacks.get(id), Entry::outcome);
                ends += events.size();
                boolean same = history.isOnce ? events.equals(records) : new HashSet<>(events).equals(new HashSet<>(records));
                same |= mayBeCut(id) && events.contains("cancelled");
                if (!same) {
                    broken.add(id + " events " + events + " callbacks " + records);
                }
            }
            line("callbacks", broken, "ends in the events " + ends);
        }

        /** Whether an end may have been written in part before its process died, and not have come again: a command met the task since. */
        private boolean mayBeCut(String id) {
            Intent intent = history.intents.get(id);
            boolean isAsked = !history.isOnce && intent != null && orders(intent, "cancel").findAny().isPresent();
            return isAsked && words(callbacks.get(id), Entry::outcome).contains("cancelled");
        }

        private static List<String> words(List<Entry> entries, java.util.function.Function<Entry, String> word) {
            return entries == null ? List.of() : entries.stream().map(word).sorted().toList();
        }

        /** Every task that ended badly has one dead letter, and no other task has any. */
        private void deadLetters() {
            Set<String> broken = new TreeSet<>();
            Set<String> ids = new TreeSet<>(deadLetters.keySet());
            callbacks.forEach((id, records) -> {
                if (records.stream().anyMatch(Promises::isBad)) {
                    ids.add(id);
                }
            });
            int letters = 0;
            for (String id : ids) {
                // As many as bad ends: an end that came twice is the affair of another line.
                long bad = callbacks.getOrDefault(id, List.of()).stream().filter(Promises::isBad).count();
                int have = deadLetters.getOrDefault(id, List.of()).size();
                letters += have;
                boolean enough = history.isOnce ? have == bad : (have > 0) == (bad > 0) || mayBeCut(id);
                if (!enough) {
                    broken.add(id + " x" + have + " for " + bad);
                }
            }
            line("dead-letters", broken, "dead letters " + letters);
        }

        /**
         * No attempt starts before its due time, before its producer wanted it, or before the backoff, and what its target asked for, after the
         * one before. A wait that a producer asks for counts from its record's timestamp, which is its clock in whole milliseconds.
         */
        private void early() {
            Set<String> broken = new TreeSet<>();
            Map<String, long[]> backoffs = new HashMap<>();
            String usual = history.campaign.getOrDefault("backoff_ms", "0");
            Map<String, Attempt> firsts = new HashMap<>();
            for (Attempt attempt : history.attempts) {
                String name = attempt.id + "#" + attempt.number;
                Intent intent = history.intents.get(attempt.id);
                long[] backoff = backoffs.computeIfAbsent(intent == null ? "" : intent.scene, scene -> Arrays
                        .stream(history.campaign.getOrDefault("backoff_ms " + scene, usual).split(",")).mapToLong(Long::parseLong).toArray());
                boolean moved = intent != null && orders(intent, "run-now", "reschedule").findAny().isPresent();
                if (attempt.time < attempt.dueMs * 1_000) {
                    broken.add(name + " by " + (attempt.dueMs * 1_000 - attempt.time) + " us");
                } else if (moved) {
                    // It may be due whenever somebody wanted it.
                    continue;
                } else if (attempt.number == 1 && intent != null && attempt.time < (intent.time / 1_000 + intent.delayMs) * 1_000) {
                    broken.add(name + " before its delay");
                }
                firsts.putIfAbsent(name, attempt);
                Attempt before = firsts.get(attempt.id + "#" + (attempt.number - 1));
                if (before != null && attempt.number > 1) {
                    long wait = backoff[Math.min(attempt.number - 2, backoff.length - 1)];
                    if (attempt.time < before.time + wait * 1_000) {
                        broken.add(name + " before its backoff");
                    } else if (attempt.time < before.time + before.askedMs * 1_000) {
                        broken.add(name + " before its target wanted it");
                    }
                }
            }
            line("early", broken, "attempts " + history.attempts.size());
        }

        /** Each attempt is first made after the one before it. */
        private void order() {
            Set<String> broken = new TreeSet<>();
            attempts.forEach((id, all) -> {
                Map<Integer, Long> firsts = firsts(all);
                int before = 0;
                for (int number : firsts.keySet().stream().sorted(Comparator.comparingLong(firsts::get)).toList()) {
                    if (number < before) {
                        broken.add(id + "#" + number + " after #" + before);
                    }
                    before = Math.max(before, number);
                }
            });
            line("order", broken, "tasks " + attempts.size());
        }

        /** Until when a fault may be felt: what all processes that were stopped meanwhile have missed of it comes when they work again. */
        private long felt(Fault fault) {
            long end = fault.end;
            for (Fault stop : history.faults) {
                if (end != Long.MAX_VALUE && stop.kind.equals("metadata") && stop.begin >= fault.begin && stop.begin <= end + TAIL) {
                    end = Math.max(end, stop.end);
                }
            }
            return end == Long.MAX_VALUE ? end : end + TAIL;
        }

        private static Map<Integer, Long> firsts(List<Attempt> attempts) {
            Map<Integer, Long> firsts = new TreeMap<>();
            attempts.forEach(attempt -> firsts.putIfAbsent(attempt.number, attempt.steady));
            return firsts;
        }

        /** No attempt is made beyond the last one that a task needs. */
        private void beyond() {
            Set<String> broken = new TreeSet<>();
            int most = 0;
            for (Attempt attempt : history.attempts) {
                Intent intent = history.intents.get(attempt.id);
                most = Math.max(most, attempt.number);
                boolean isOpen = intent != null && Set.of(RESTED, FORCED, STOPPED).contains(intent.scene);
                int needed = intent == null ? 0 : intent.isLife() ? most(intent) : intent.attempts + saidAgain(intent);
                if (intent != null && !isOpen && (attempt.number > needed || attempt.number < 1)) {
                    broken.add(attempt.id + "#" + attempt.number + " of " + needed);
                }
            }
            line("beyond", broken, "highest attempt " + most);
        }

        /** Every attempt that a task needs was made, if it has ended. */
        private void missing() {
            Set<String> broken = new TreeSet<>();
            int needed = 0;
            for (String id : callbacks.keySet()) {
                Intent intent = history.intents.get(id);
                Map<Integer, Long> firsts = firsts(attempts.getOrDefault(id, List.of()));
                boolean isCut = callbacks.get(id).stream().anyMatch(record -> record.outcome.equals("cancelled"));
                isCut |= intent != null && intent.scene.equals(STOPPED);
                isCut |= intent != null && saidAgain(intent) > 0;
                // Of one that was replayed, all up to its last one.
                int last = intent == null ? 0 : intent.isLife() ? firsts.keySet().stream().max(Comparator.naturalOrder()).orElse(1) : intent.attempts;
                for (int number = 1; intent != null && !isCut && number <= last; number++) {
                    needed++;
                    if (!firsts.containsKey(number)) {
                        broken.add(id + "#" + number);
                    }
                }
            }
            line("missing", broken, "attempts needed " + needed);
        }

        /**
         * Attempts are made twice only after a fault, and no more of them than were in flight or not committed. Where faults overlap, each
         * attempt is blamed on the one whose time is up first: if any distribution of blame works, this one does.
         */
        private void duplicates() {
            Set<String> broken = new TreeSet<>();
            long concurrency = Long.parseLong(history.campaign.getOrDefault("concurrency", "0"));
            long processes = Long.parseLong(history.campaign.getOrDefault("processes", "1"));
            Map<Fault, Long> bounds = new LinkedHashMap<>();
            for (Fault fault : history.faults) {
                // What was in flight, of all processes where all are hit, and what was not durable; nothing where processes drain.
                long hit = fault.kind.equals("broker") || HOLDING.contains(fault.kind) ? processes : 1;
                bounds.put(fault, HARMLESS.contains(fault.kind) ? 0 : hit * concurrency + uncommitted(fault));
            }
            Map<Fault, Long> blamed = new HashMap<>();
            Map<String, Attempt> seen = new HashMap<>();
            int twice = 0;
            for (Attempt attempt : history.attempts) {
                Attempt before = seen.put(attempt.id + "#" + attempt.number, attempt);
                if (before == null) {
                    continue;
                }
                Intent intent = history.intents.get(attempt.id);
                boolean mayBeHeld = intent != null && mayBeHeld(intent);
                twice++;
                Fault blame = null;
                for (Fault fault : history.faults) {
                    boolean isWithin = attempt.time >= fault.begin && attempt.time <= felt(fault);
                    // A hold, or its target, may have kept it from being made again sooner.
                    boolean wasWithin = mayBeHeld && before.time >= fault.begin - 1_000_000 && before.time <= felt(fault);
                    boolean possible = (isWithin || wasWithin) && blamed.getOrDefault(fault, 0L) < bounds.get(fault);
                    if (possible && (blame == null || fault.end < blame.end)) {
                        blame = fault;
                    }
                }
                if (blame == null) {
                    broken.add(attempt.id + "#" + attempt.number + " with no fault to blame");
                } else {
                    blamed.merge(blame, 1L, Long::sum);
                }
            }
            String worst = "";
            double share = 0;
            for (Map.Entry<Fault, Long> entry : blamed.entrySet()) {
                long bound = bounds.get(entry.getKey());
                if ((double) entry.getValue() / bound >= share) {
                    share = (double) entry.getValue() / bound;
                    worst = ", most after fault " + entry.getKey().number + " " + entry.getKey().kind + ": " + entry.getValue() + " of " + bound;
                }
            }
            promisedOnce("duplicates", broken, "attempts made twice " + twice + " after " + history.faults.size() + " faults" + worst);
        }

        /**
         * How many attempts may not have been durable when a fault began: a second's, or those since an earlier fault still held them up;
         * and, while a process can commit nothing and does not know it yet, those until then.
         */
        private long uncommitted(Fault fault) {
            long from = fault.begin - 1_000_000;
            for (Fault other : history.faults) {
                if (other.begin < fault.begin && other.covers(fault.begin, 10_000_000)) {
                    from = Math.min(from, other.begin);
                }
            }
            long since = from;
            long unknown = fault.kind.equals("zombie") && fault.end != Long.MAX_VALUE ? fault.end + ZOMBIE : fault.end;
            boolean isUnnoticed = UNNOTICED.contains(fault.kind) || fault.kind.equals("zombie");
            long until = Math.max(fault.begin + 1_000_000, isUnnoticed ? unknown : 0);
            return history.attempts.stream().filter(attempt -> attempt.time >= since && attempt.time <= until).count();
        }

        /** No attempt is made again once its consequence is durable, but by a process that does not know yet that it was replaced. */
        private void repeated() {
            Set<String> broken = new TreeSet<>();
            for (Attempt attempt : history.attempts) {
                long durable = Long.MAX_VALUE;
                for (Entry entry : parked.getOrDefault(attempt.id, List.of())) {
                    if (entry.attempt > attempt.number) {
                        durable = Math.min(durable, entry.timeMs * 1_000);
                    }
                }
                for (Entry entry : callbacks.getOrDefault(attempt.id, List.of())) {
                    durable = Math.min(durable, entry.timeMs * 1_000);
                }
                if (durable != Long.MAX_VALUE && attempt.time > durable + COMMIT && !isReplaced(attempt)) {
                    broken.add(attempt.id + "#" + attempt.number);
                }
            }
            promisedOnce("repeated", broken, "attempts " + history.attempts.size());
        }

        /** No offset is committed before the consequence of every record below it is on a topic. */
        private void committed() {
            Map<String, List<Entry>> read = new HashMap<>();
            for (Entry entry : history.entries) {
                boolean known = !entry.id.isEmpty() && !history.gone.contains(entry.id) && !history.exempt.contains(entry.id);
                if (entry.committed && known && (entry.isParked() || entry.topic.equals(history.prefix + ".tasks"))) {
                    read.computeIfAbsent(entry.topic + "/" + entry.partition, key -> new ArrayList<>()).add(entry);
                }
            }
            Map<String, List<long[]>> since = new HashMap<>();
            read.forEach((partition, entries) -> {
                entries.sort(Comparator.comparingLong(Entry::offset));
                // The offset, and when everything up to it had its consequence.
                List<long[]> steps = new ArrayList<>();
                long latest = 0;
                for (Entry entry : entries) {
                    latest = Math.max(latest, consequence(entry));
                    steps.add(new long[] {entry.offset, latest});
                }
                since.put(partition, steps);
            });
            Set<String> broken = new TreeSet<>();
            for (Sample sample : history.samples) {
                String partition = sample.topic + "/" + sample.partition;
                for (long[] step : since.getOrDefault(partition, List.of())) {
                    if (step[0] >= sample.offset) {
                        break;
                    }
                    if (step[1] > sample.time) {
                        broken.add(partition + " at " + sample.offset + ", " + step[0] + " unfinished");
                        break;
                    }
                }
            }
            long records = read.values().stream().mapToLong(List::size).sum();
            line("committed", broken, "samples " + history.samples.size() + ", records read " + records);
        }

        /** Committed offsets never go back: nobody commits for a shard that somebody else has by now. */
        private void backwards() {
            Set<String> broken = new TreeSet<>();
            Map<String, Sample> latest = new HashMap<>();
            for (Sample sample : history.samples) {
                Sample before = latest.put(sample.topic + "/" + sample.partition, sample);
                if (before != null && before.offset > sample.offset) {
                    broken.add(sample.topic + "/" + sample.partition + " from " + before.offset + " to " + sample.offset);
                }
            }
            line("backwards", broken, "partitions " + latest.size());
        }

        /** When the first consequence of a record was written, in microseconds. */
        private long consequence(Entry entry) {
            long first = Long.MAX_VALUE;
            if (copies.getOrDefault(entry.id, List.of()).contains(entry)) {
                for (Entry event : dropped.getOrDefault(entry.place(), List.of())) {
                    first = Math.min(first, event.timeMs * 1_000);
                }
                return first;
            }
            if (isReplacing(entry.id)) {
                return newcomers.consequence(entry);
            }
            for (Entry later : parked.getOrDefault(entry.id, List.of())) {
                boolean after = !entry.isParked() || later.attempt > entry.attempt
                        || (later.attempt == entry.attempt && later.hops > entry.hops);
                if (after) {
                    first = Math.min(first, later.timeMs * 1_000);
                }
            }
            for (String name : names(entry.id)) {
                for (Entry callback : callbacks.getOrDefault(name, List.of())) {
                    first = Math.min(first, callback.timeMs * 1_000);
                }
            }
            return first;
        }

        /** Payloads arrive as they were produced: at the target, in tiers and as dead letters. */
        private void bytes() {
            Set<String> broken = new TreeSet<>();
            for (Attempt attempt : history.attempts) {
                same(attempt.id, attempt.fingerprint, "at the target", broken);
            }
            for (Map<String, List<Entry>> place : List.of(deadLetters, parked)) {
                place.values().forEach(entries -> entries.forEach(entry -> same(entry.id, entry.fingerprint, "on " + entry.topic, broken)));
            }
            line("bytes", broken, "payloads compared " + (history.attempts.size() + sum(deadLetters) + sum(parked)));
        }

        private void same(String id, String fingerprint, String where, Set<String> broken) {
            Intent intent = history.intents.get(id);
            if (intent != null && !intent.fingerprint.equals(fingerprint)) {
                broken.add(id + " " + where);
            }
        }

        private static int sum(Map<String, List<Entry>> map) {
            return map.values().stream().mapToInt(List::size).sum();
        }

        /** The idempotency key is the task's identity, on every attempt. */
        private void keys() {
            Set<String> broken = new TreeSet<>();
            for (Attempt attempt : history.attempts) {
                if (!attempt.key.equals(task(attempt.id))) {
                    broken.add(attempt.id + "#" + attempt.number + " " + attempt.key);
                }
            }
            line("keys", broken, "attempts " + history.attempts.size());
        }

        /**
         * A task with a key starts after the ends of those of its key that were produced before it, and once it has, none of those is
         * attempted any more, but by a process that does not know yet that it was replaced.
         */
        private void turns() {
            Map<String, List<Entry>> lines = new TreeMap<>();
            for (Entry entry : tasks.values()) {
                Intent intent = history.intents.get(entry.id);
                if (intent != null && !intent.key.isEmpty()) {
                    lines.computeIfAbsent(intent.key + "@" + entry.partition, key -> new ArrayList<>()).add(entry);
                }
            }
            // Those that a campaign has replayed enter in the order of their letters, which is that of their ends.
            for (Life life : replays.lives.values()) {
                Intent intent = history.intents.get(life(life.task, life.campaign));
                if (intent != null && !intent.key.isEmpty() && !life.entered.isEmpty()) {
                    Entry entry = life.entered.get(0);
                    lines.computeIfAbsent(intent.key + "@" + entry.partition + LIFE + life.campaign, key -> new ArrayList<>()).add(entry);
                }
            }
            Set<String> broken = new TreeSet<>();
            int count = 0;
            int behind = 0;
            for (List<Entry> line : lines.values()) {
                line.sort(Comparator.comparingLong(Entry::offset));
                String before = "";
                long ended = 0;
                // Nobody waits for one that was destroyed.
                line.removeIf(entry -> history.gone.contains(entry.id) && !callbacks.containsKey(entry.id));
                for (Entry entry : line) {
                    count++;
                    long first = Long.MAX_VALUE;
                    for (Attempt attempt : attempts.getOrDefault(entry.id, List.of())) {
                        first = Math.min(first, attempt.time);
                    }
                    if (first < ended) {
                        broken.add(entry.id + " before the end of " + before);
                    }
                    behind += history.intents.get(entry.id).time < ended ? 1 : 0;
                    long end = Long.MAX_VALUE;
                    for (Entry callback : callbacks.getOrDefault(entry.id, List.of())) {
                        end = Math.min(end, callback.timeMs * 1_000);
                    }
                    if (end > ended) {
                        before = entry.id;
                        ended = end;
                    }
                }
                long later = Long.MAX_VALUE;
                String who = "";
                for (int i = line.size() - 1; i >= 0; i--) {
                    Entry entry = line.get(i);
                    long first = Long.MAX_VALUE;
                    for (Attempt attempt : attempts.getOrDefault(entry.id, List.of())) {
                        first = Math.min(first, attempt.time);
                        if (attempt.time > later && !isReplaced(attempt)) {
                            broken.add(entry.id + "#" + attempt.number + " after the start of " + who);
                        }
                    }
                    if (first < later) {
                        later = first;
                        who = entry.id;
                    }
                }
            }
            promisedOnce("turns", broken, "keys " + lines.size() + ", tasks " + count + ", produced before the end of another one " + behind);
        }

        /** Whether an attempt may be one of a process that does not know yet that it was replaced. */
        private boolean isReplaced(Attempt attempt) {
            return history.faults.stream().anyMatch(fault -> !fault.kind.equals("kill") && fault.covers(attempt.time, ZOMBIE + 6_000_000));
        }

        /**
         * A process that is told to leave ends with 0, by that signal if it had not begun to work, or as failed (1) where an act keeps what
         * was answered from being committed; one ends by itself only while the broker is away, as failed (1) or not started (5), or
         * refuses to start (4), told to leave meanwhile or not, while a scene or a topic cannot be read.
         */
        private void exits() {
            Set<String> broken = new TreeSet<>();
            int itself = 0;
            for (Exit exit : history.exits) {
                boolean away = covered(exit, Set.of("broker"));
                itself += exit.why.equals("itself") ? 1 : 0;
                boolean fine = switch (exit.status) {
                    case "0", "signal 15" -> exit.why.equals("sigterm");
                    case "1" -> away || (exit.why.equals("sigterm") && covered(exit, HOLDING));
                    case "4" -> covered(exit, Set.of("scene-unreadable", "deny"));
                    case "5" -> away;
                    default -> false;
                };
                if (!fine) {
                    broken.add(exit.process + " " + exit.why + " " + exit.status);
                }
            }
            line("exits", broken, "ended on SIGTERM " + (history.exits.size() - itself) + ", by themselves " + itself);
        }

        private boolean covered(Exit exit, Set<String> kinds) {
            return history.faults.stream().anyMatch(fault -> kinds.contains(fault.kind) && fault.covers(exit.time, TAIL));
        }

        /** What a record is called by its producer and, where it bears no id that can be read, by retide. */
        private Set<String> names(String id) {
            Set<String> names = new TreeSet<>(Set.of(id));
            if (history.odd.containsKey(id)) {
                oddIds.forEach((own, other) -> {
                    if (other.equals(id)) {
                        names.add(own);
                    }
                });
            }
            return names;
        }

        /** A record that no producer should write has one end, the one that it must have. */
        private void odd() {
            Set<String> broken = new TreeSet<>();
            history.odd.forEach((id, outcome) -> {
                List<String> ends = new ArrayList<>();
                names(id).forEach(name -> ends.addAll(words(callbacks.get(name), Entry::outcome)));
                if (tasks.containsKey(id) && !ends.equals(List.of(outcome))) {
                    broken.add(id + " " + ends);
                }
            });
            line("odd", broken, "odd records " + history.odd.size());
        }

        /** What keeps retide from its work is told in time: by its probe, its metrics and its log. */
        private void told() {
            Set<String> broken = new TreeSet<>();
            for (Fault fault : history.faults) {
                String missing = history.toldOf.getOrDefault(fault.number, "");
                if (!missing.isEmpty()) {
                    broken.add(fault.kind + " " + fault.detail + " not in " + missing);
                }
            }
            line("told", broken, "faults to tell of " + history.toldOf.size());
        }

        /** No group says that it is well while nothing ends. */
        private void working() {
            List<String> broken = history.notes.stream().filter(note -> note[0].equals("idle")).map(note -> note[1]).toList();
            line("working", broken, "ends " + callbacks.size());
        }

        /** Everything that the adversary was to do was done. */
        private void acts() {
            List<String> broken = history.notes.stream().filter(note -> note[0].equals("failed")).map(note -> note[1]).toList();
            Map<String, Integer> kinds = new TreeMap<>();
            history.faults.forEach(fault -> kinds.merge(fault.kind, 1, Integer::sum));
            line("acts", broken, "faults " + kinds + ", tasks destroyed " + history.gone.size() + ", may be done again " + history.exempt.size());
        }

        /** Attempts start soon after their due time while nothing is wrong; those of tasks that wait for others of their key, for people or for their target, do not count. */
        private void lateness() {
            List<Long> inside = new ArrayList<>();
            List<Long> outside = new ArrayList<>();
            // A first attempt is late from its record's timestamp on, so also while nobody has read it; a retry only from when retide wanted it.
            List<Long> retries = new ArrayList<>();
            for (Attempt attempt : history.attempts) {
                Intent intent = history.intents.get(attempt.id);
                if (intent != null && (!intent.key.isEmpty() || mayBeHeld(intent) || WAITS.contains(intent.scene))) {
                    continue;
                }
                boolean fault = history.faults.stream().anyMatch(candidate -> candidate.covers(attempt.time, TAIL));
                long late = (attempt.time - attempt.dueMs * 1_000) / 1_000;
                (fault ? inside : outside).add(late);
                if (!fault && attempt.number > 1) {
                    retries.add(late);
                }
            }
            List<String> broken = percentile(outside, 99) > LATE ? List.of("p99 above " + LATE + " ms outside faults") : List.of();
            line("lateness", broken, "outside faults " + figures(outside) + ", retries " + figures(retries) + "; inside " + figures(inside));
        }

        private static String figures(List<Long> millis) {
            return "p50 " + percentile(millis, 50) + " p99 " + percentile(millis, 99) + " max " + percentile(millis, 100) + " ms of " + millis.size();
        }

        private static long percentile(List<Long> values, int percent) {
            if (values.isEmpty()) {
                return 0;
            }
            List<Long> sorted = values.stream().sorted().toList();
            return sorted.get(Math.min(sorted.size() - 1, sorted.size() * percent / 100));
        }

        /** What was aborted, for information: it shows that transactions were in the way of faults. */
        private void aborted() {
            long aborted = history.entries.stream().filter(entry -> !entry.committed).count();
            line("aborted", List.of(), "records aborted " + aborted + " of " + history.entries.size());
        }
    }
}
