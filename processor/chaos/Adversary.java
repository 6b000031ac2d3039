// What admins and other programs do to the topics and the group of a campaign, one command a line.
//
// Java and Kafka's own clients, since permissions and quotas cannot be changed with the client that retide uses.
//
//   java -cp 'target/kafka/VERSION/*' processor/chaos/Adversary.java HOST:PORT
//
// Commands are words with spaces between them; each is answered with one line, `ok` and what was asked for, or `error` and why:
//   allow USER                            everything, on every topic, group and transactional id
//   deny USER OPERATION TOPIC             takes one operation away
//   undeny USER OPERATION TOPIC           gives it back
//   quota USER BYTES                      bytes a second that it may produce; 0 for as many as it likes
//   widen TOPIC PARTITIONS                adds partitions
//   delete TOPIC PARTITION OFFSET         deletes the records before an offset
//   config TOPIC KEY VALUE                sets a setting of a topic; `-` takes it back
//   committed GROUP                       the group's offsets, as TOPIC/PARTITION=OFFSET
//   swap GROUP TOPIC                      gives each partition the commit metadata of the next one; the group must have no members
//   commit GROUP TOPIC PARTITION OFFSET   commits an offset for a group without members
//   forget GROUP                          deletes a group
//   hang TOPIC PARTITION                  leaves a transaction open on a partition
//   unhang                                ends it
//   produce TOPIC KEY VALUE               writes a record; `-` for no value

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaFuture;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.quota.ClientQuotaAlteration;
import org.apache.kafka.common.quota.ClientQuotaEntity;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public final class Adversary {
    private final String bootstrap;
    private final Admin admin;
    private KafkaProducer<byte[], byte[]> hanging;

    private Adversary(String bootstrap) {
        this.bootstrap = bootstrap;
        admin = Admin.create(properties());
    }

    public static void main(String[] arguments) throws Exception {
        Adversary adversary = new Adversary(arguments[0]);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String answer;
            try {
                answer = ("ok " + adversary.act(line.split(" "))).strip();
            } catch (Exception error) {
                Throwable cause = error.getCause() == null ? error : error.getCause();
                answer = "error " + cause.toString().replace('\n', ' ');
            }
            System.out.println(answer);
            System.out.flush();
        }
    }

    private String act(String[] words) throws Exception {
        switch (words[0]) {
            case "allow" -> {
                List<AclBinding> all = new ArrayList<>();
                for (ResourceType type : List.of(ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID)) {
                    all.add(acl(words[1], AclOperation.ALL, type, "*", AclPermissionType.ALLOW));
                }
                all.add(acl(words[1], AclOperation.ALL, ResourceType.CLUSTER, "kafka-cluster", AclPermissionType.ALLOW));
                await(admin.createAcls(all).all());
            }
            case "deny" -> await(admin.createAcls(List.of(denial(words))).all());
            case "undeny" -> await(admin.deleteAcls(List.of(denial(words).toFilter())).all());
            case "quota" -> {
                double bytes = Double.parseDouble(words[2]);
                ClientQuotaEntity entity = new ClientQuotaEntity(Map.of(ClientQuotaEntity.USER, words[1]));
                var quota = new ClientQuotaAlteration.Op("producer_byte_rate", bytes == 0 ? null : Double.valueOf(bytes));
                await(admin.alterClientQuotas(List.of(new ClientQuotaAlteration(entity, List.of(quota)))).all());
            }
            case "widen" -> await(admin.createPartitions(Map.of(words[1], NewPartitions.increaseTo(Integer.parseInt(words[2])))).all());
            case "delete" -> await(admin.deleteRecords(
                    Map.of(partition(words[1], words[2]), RecordsToDelete.beforeOffset(Long.parseLong(words[3])))).all());
            case "config" -> {
                ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, words[1]);
                AlterConfigOp op = words[3].equals("-")
                        ? new AlterConfigOp(new ConfigEntry(words[2], null), AlterConfigOp.OpType.DELETE)
                        : new AlterConfigOp(new ConfigEntry(words[2], words[3]), AlterConfigOp.OpType.SET);
                Collection<AlterConfigOp> ops = List.of(op);
                await(admin.incrementalAlterConfigs(Map.of(resource, ops)).all());
            }
            case "committed" -> {
                StringBuilder text = new StringBuilder();
                committed(words[1]).forEach((place, offset) -> text.append(place).append('=').append(offset.offset()).append(' '));
                return text.toString();
            }
            case "swap" -> {
                TreeMap<Integer, OffsetAndMetadata> offsets = new TreeMap<>();
                committed(words[1]).forEach((place, offset) -> {
                    int cut = place.lastIndexOf('/');
                    if (place.substring(0, cut).equals(words[2])) {
                        offsets.put(Integer.parseInt(place.substring(cut + 1)), offset);
                    }
                });
                Map<TopicPartition, OffsetAndMetadata> swapped = new HashMap<>();
                for (Map.Entry<Integer, OffsetAndMetadata> entry : offsets.entrySet()) {
                    Integer next = offsets.higherKey(entry.getKey());
                    String metadata = offsets.get(next == null ? offsets.firstKey() : next).metadata();
                    swapped.put(new TopicPartition(words[2], entry.getKey()), new OffsetAndMetadata(entry.getValue().offset(), metadata));
                }
                await(admin.alterConsumerGroupOffsets(words[1], swapped).all());
            }
            case "commit" -> await(admin.alterConsumerGroupOffsets(words[1],
                    Map.of(partition(words[2], words[3]), new OffsetAndMetadata(Long.parseLong(words[4])))).all());
            case "forget" -> await(admin.deleteConsumerGroups(List.of(words[1])).all());
            case "hang" -> {
                Properties properties = properties();
                properties.put("transactional.id", "adversary-" + System.nanoTime());
                properties.put("transaction.timeout.ms", "600000");
                hanging = new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
                hanging.initTransactions();
                hanging.beginTransaction();
                hanging.send(new ProducerRecord<>(words[1], Integer.parseInt(words[2]), null, new byte[] {1})).get(20, TimeUnit.SECONDS);
            }
            case "unhang" -> {
                hanging.abortTransaction();
                hanging.close();
                hanging = null;
            }
            case "produce" -> {
                try (KafkaProducer<byte[], byte[]> producer =
                        new KafkaProducer<>(properties(), new ByteArraySerializer(), new ByteArraySerializer())) {
                    byte[] value = words[3].equals("-") ? null : words[3].getBytes(StandardCharsets.UTF_8);
                    producer.send(new ProducerRecord<>(words[1], words[2].getBytes(StandardCharsets.UTF_8), value)).get(20, TimeUnit.SECONDS);
                }
            }
            default -> throw new IllegalArgumentException("unknown command " + words[0]);
        }
        return "";
    }

    private Map<String, OffsetAndMetadata> committed(String group) throws Exception {
        Map<String, OffsetAndMetadata> offsets = new TreeMap<>();
        await(admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata()).forEach((partition, offset) -> {
            if (offset != null) {
                offsets.put(partition.topic() + "/" + partition.partition(), offset);
            }
        });
        return offsets;
    }

    private static AclBinding denial(String[] words) {
        AclOperation operation = AclOperation.fromString(words[2].toUpperCase(java.util.Locale.ROOT));
        return acl(words[1], operation, ResourceType.TOPIC, words[3], AclPermissionType.DENY);
    }

    private static AclBinding acl(String user, AclOperation operation, ResourceType type, String name, AclPermissionType permission) {
        return new AclBinding(new ResourcePattern(type, name, PatternType.LITERAL),
                new AccessControlEntry("User:" + user, "*", operation, permission));
    }

    private static TopicPartition partition(String topic, String partition) {
        return new TopicPartition(topic, Integer.parseInt(partition));
    }

    private Properties properties() {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("default.api.timeout.ms", "60000");
        return properties;
    }

    private static <T> T await(KafkaFuture<T> future) throws Exception {
        return future.get(90, TimeUnit.SECONDS);
    }
}
