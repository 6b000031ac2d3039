import java.util.Map;

import org.apache.kafka.common.errors.PolicyViolationException;
import org.apache.kafka.server.policy.CreateTopicPolicy;

/** Refuses what some clusters refuse, for topics of tests that ask for it by their prefix. */
public class Policy implements CreateTopicPolicy {
    @Override
    public void validate(RequestMetadata topic) {
        String name = topic.topic();
        if (name.startsWith("policed")) {
            refuse(topic, "segment.bytes");
            refuse(topic, "min.cleanable.dirty.ratio");
        }
        if (name.startsWith("policed-strict") && name.endsWith(".dead-letters")) {
            throw new PolicyViolationException("dead letters are not to be kept here, says the policy");
        }
    }

    private static void refuse(RequestMetadata topic, String setting) {
        if (topic.configs().containsKey(setting)) {
            throw new PolicyViolationException("'" + setting + "' is not to be set, says the policy");
        }
    }

    @Override
    public void configure(Map<String, ?> settings) {
    }

    @Override
    public void close() {
    }
}
