import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Properties;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.AcknowledgeType;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Time;
import org.apache.kafka.connect.runtime.ConnectMetrics;
import org.apache.kafka.connect.runtime.SinkConnectorConfig;
import org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter;
import org.apache.kafka.connect.runtime.errors.ErrorHandlingMetrics;
import org.apache.kafka.connect.runtime.errors.ProcessingContext;
import org.apache.kafka.connect.runtime.errors.Stage;
import org.apache.kafka.connect.runtime.isolation.Plugins;
import org.apache.kafka.connect.runtime.standalone.StandaloneConfig;
import org.apache.kafka.connect.storage.StringConverter;
import org.apache.kafka.connect.util.ConnectorTaskId;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.LogAndContinueProcessingExceptionHandler;
import org.eclipse.microprofile.reactive.messaging.Message;
import org.eclipse.microprofile.reactive.messaging.Metadata;
import org.springframework.kafka.core.DefaultKafkaProducerFactory;
import org.springframework.kafka.core.KafkaTemplate;
import org.springframework.kafka.listener.DeadLetterPublishingRecoverer;
import org.springframework.kafka.listener.ListenerExecutionFailedException;

import io.smallrye.mutiny.operators.multi.processors.UnicastProcessor;
import io.smallrye.reactive.messaging.kafka.IncomingKafkaRecord;
import io.smallrye.reactive.messaging.kafka.fault.KafkaDeadLetterQueue;

/** Lets each library write the dead letters of a few records, and prints what then stands on its topic. */
class Letters {
    static final int LETTERS = 5;
    static final String SOURCE = "orders";

    final String bootstrap;
    final Map<String, Object> client;

    Letters(String bootstrap) {
        this.bootstrap = bootstrap;
        this.client = Map.of(
                "bootstrap.servers", bootstrap,
                "key.serializer", ByteArraySerializer.class.getName(),
                "value.serializer", ByteArraySerializer.class.getName(),
                "key.deserializer", ByteArrayDeserializer.class.getName(),
                "value.deserializer", ByteArrayDeserializer.class.getName(),
                "auto.offset.reset", "earliest");
    }

    public static void main(String[] arguments) throws Exception {
        Letters letters = new Letters(arguments[0]);
        letters.create();
        List<ConsumerRecord<byte[], byte[]>> records = letters.produce();
        letters.spring(records);
        letters.connect(records);
        letters.streams();
        letters.smallrye(records);
        letters.share("pointers", "dlq.pointers", false);
        letters.share("copies", "dlq.copies", true);
        letters.print("spring", "spring");
        letters.print("connect", "connect");
        letters.print("streams", "streams");
        letters.print("smallrye", "smallrye");
        letters.print("share-group", "dlq.copies");
        letters.print("pointer", "dlq.pointers");
        System.exit(0);
    }

    void create() throws Exception {
        try (Admin admin = Admin.create(client)) {
            List<NewTopic> topics = new ArrayList<>();
            for (String name : List.of(SOURCE, "spring", "connect", "streams", "smallrye", "dlq.pointers", "dlq.copies")) {
                NewTopic topic = new NewTopic(name, 1, (short) 1);
                topics.add(name.startsWith("dlq.") ? topic.configs(Map.of("errors.deadletterqueue.group.enable", "true")) : topic);
            }
            admin.createTopics(topics).all().get();
        }
    }

    /** Records that will fail, as a consumer reads them. */
    List<ConsumerRecord<byte[], byte[]>> produce() throws Exception {
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(client)) {
            for (int number = 0; number < LETTERS; number++) {
                ProducerRecord<byte[], byte[]> record =
                        new ProducerRecord<>(SOURCE, bytes("key-" + number), bytes("order " + number));
                record.headers().add("trace", bytes("t-" + number)).add("trace", bytes("again")).add("empty", null);
                producer.send(record).get();
            }
        }
        return read(SOURCE);
    }

    List<ConsumerRecord<byte[], byte[]>> read(String topic) {
        List<ConsumerRecord<byte[], byte[]>> all = new ArrayList<>();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(client)) {
            consumer.assign(List.of(new TopicPartition(topic, 0)));
            consumer.seekToBeginning(consumer.assignment());
            long until = System.currentTimeMillis() + 60_000;
            while (all.size() < LETTERS) {
                consumer.poll(Duration.ofMillis(200)).forEach(all::add);
                if (System.currentTimeMillis() > until) {
                    throw new IllegalStateException(all.size() + " letters on " + topic);
                }
            }
        }
        return all;
    }

    void spring(List<ConsumerRecord<byte[], byte[]>> records) {
        var template = new KafkaTemplate<byte[], byte[]>(new DefaultKafkaProducerFactory<>(client));
        var recoverer = new DeadLetterPublishingRecoverer(template, (record, error) -> new TopicPartition("spring", 0));
        for (ConsumerRecord<byte[], byte[]> record : records) {
            Exception cause = new IllegalStateException("no stock");
            recoverer.accept(record, null, new ListenerExecutionFailedException("Listener failed", "shop", cause));
        }
        template.flush();
    }

    void connect(List<ConsumerRecord<byte[], byte[]>> records) throws Exception {
        String converter = StringConverter.class.getName();
        var worker = new StandaloneConfig(Map.of(
                "bootstrap.servers", bootstrap,
                "key.converter", converter,
                "value.converter", converter,
                "offset.storage.file.filename", "/dev/null"));
        var sink = new SinkConnectorConfig(new Plugins(Map.of()), Map.of(
                "name", "sink",
                "connector.class", "Sink",
                "topics", SOURCE,
                "errors.tolerance", "all",
                "errors.deadletterqueue.topic.name", "connect",
                "errors.deadletterqueue.topic.replication.factor", "1",
                "errors.deadletterqueue.context.headers.enable", "true"));
        var task = new ConnectorTaskId("sink", 0);
        var metrics = new ErrorHandlingMetrics(task, new ConnectMetrics("worker", worker, Time.SYSTEM, "cluster"));
        var reporter = DeadLetterQueueReporter.createAndSetup(client, task, sink, client, metrics);
        for (ConsumerRecord<byte[], byte[]> record : records) {
            var context = new ProcessingContext<>(record);
            context.currentContext(Stage.VALUE_CONVERTER, StringConverter.class);
            context.error(new org.apache.kafka.connect.errors.DataException("no stock"));
            reporter.report(context).get();
        }
        reporter.close();
    }

    void streams() throws Exception {
        var builder = new StreamsBuilder();
        builder.<byte[], byte[]>stream(SOURCE).foreach((key, value) -> {
            throw new IllegalStateException("no stock");
        });
        var properties = new Properties();
        properties.put("application.id", "streams-app");
        properties.put("bootstrap.servers", bootstrap);
        properties.put("default.key.serde", Serdes.ByteArraySerde.class);
        properties.put("default.value.serde", Serdes.ByteArraySerde.class);
        properties.put("auto.offset.reset", "earliest");
        properties.put("commit.interval.ms", 100);
        properties.put("state.dir", System.getProperty("java.io.tmpdir") + "/letters-" + ProcessHandle.current().pid());
        properties.put("processing.exception.handler", LogAndContinueProcessingExceptionHandler.class);
        properties.put("errors.dead.letter.queue.topic.name", "streams");
        try (var streams = new KafkaStreams(builder.build(), properties)) {
            streams.start();
            read("streams");
        }
    }

    /** The handler makes the record; what its channel would do, which is to send it, is done here. */
    void smallrye(List<ConsumerRecord<byte[], byte[]>> records) throws Exception {
        UnicastProcessor<Message<?>> channel = UnicastProcessor.create();
        List<ProducerRecord<byte[], byte[]>> dead = new ArrayList<>();
        channel.subscribe().with(message -> {
            @SuppressWarnings("unchecked")
            var record = (ProducerRecord<byte[], byte[]>) message.getPayload();
            dead.add(record);
        });
        var queue = new KafkaDeadLetterQueue("orders-in", "smallrye", null, channel);
        for (ConsumerRecord<byte[], byte[]> record : records) {
            var incoming = new IncomingKafkaRecord<>(record, "orders-in", 0, null, null, false, false);
            Throwable reason = new IllegalStateException("no stock", new RuntimeException("warehouse"));
            queue.handle(incoming, reason, Metadata.empty()).subscribe().with(done -> {});
        }
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(client)) {
            for (ProducerRecord<byte[], byte[]> record : dead) {
                producer.send(record).get();
            }
        }
    }

    /** A consumer of a share group that rejects all it gets; the broker writes the letters. */
    void share(String group, String topic, boolean copies) throws Exception {
        try (Admin admin = Admin.create(client)) {
            var resource = new ConfigResource(ConfigResource.Type.GROUP, group);
            List<AlterConfigOp> changes = new ArrayList<>();
            for (var entry : Map.of(
                    "share.auto.offset.reset", "earliest",
                    "errors.deadletterqueue.topic.name", topic,
                    "errors.deadletterqueue.copy.record.enable", String.valueOf(copies)).entrySet()) {
                changes.add(new AlterConfigOp(new ConfigEntry(entry.getKey(), entry.getValue()), AlterConfigOp.OpType.SET));
            }
            admin.incrementalAlterConfigs(Map.of(resource, changes)).all().get();
        }
        Map<String, Object> configuration = Map.of(
                "bootstrap.servers", bootstrap,
                "group.id", group,
                "share.acknowledgement.mode", "explicit",
                "key.deserializer", ByteArrayDeserializer.class.getName(),
                "value.deserializer", ByteArrayDeserializer.class.getName());
        try (var consumer = new KafkaShareConsumer<byte[], byte[]>(configuration)) {
            consumer.subscribe(List.of(SOURCE));
            int rejected = 0;
            while (rejected < LETTERS) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(500))) {
                    consumer.acknowledge(record, AcknowledgeType.REJECT);
                    rejected++;
                }
                consumer.commitSync();
            }
            read(topic);
        }
    }

    /** One line a letter: JSON, and bytes in Base64. */
    void print(String dialect, String topic) {
        for (ConsumerRecord<byte[], byte[]> record : read(topic)) {
            StringBuilder line = new StringBuilder("{\"dialect\":\"" + dialect + "\",\"key\":" + base64(record.key())
                    + ",\"value\":" + base64(record.value()) + ",\"headers\":[");
            String comma = "";
            for (Header header : record.headers()) {
                line.append(comma).append("[\"").append(header.key()).append("\",").append(base64(header.value())).append(']');
                comma = ",";
            }
            System.out.println(line.append("]}"));
        }
    }

    static String base64(byte[] bytes) {
        return bytes == null ? "null" : '"' + Base64.getEncoder().encodeToString(bytes) + '"';
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
