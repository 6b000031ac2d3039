//! librdkafka, asked what it takes of a configuration: `retide-config` does not link it.
//!
//! Invariant: what passes here is not refused when workers start, since it is asked of the same library in the same way.

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, ProducerContext};

use retide_config::kafka::{Client, Properties, Refusal};
use retide_kafka::client::client_config;
use retide_kafka::producer::producer_config;

/// The library that this program links.
#[derive(Clone, Copy, Debug)]
pub struct Librdkafka;

/// Hears nothing: the client that is made says what is wrong by not coming about.
struct Deaf;

impl ClientContext for Deaf {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Deaf {}

impl ProducerContext for Deaf {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

// === impl Librdkafka ===

impl Client for Librdkafka {
    fn check(&self, property: &str, value: &str) -> Result<(), Refusal> {
        let mut config = ClientConfig::new();
        config.set(property, value);
        match config.create_native_config() {
            Err(KafkaError::ClientConfig(_, message, ..)) => Err(refusal(message)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn create(&self, consumer: &Properties, producer: &Properties) -> Result<(), String> {
        let mut consumer = client_config(consumer.clone());
        consumer.set("group.id", "retide-check");
        let consumer: Result<BaseConsumer<Deaf>, _> = consumer.create_with_context(Deaf);
        let producer = producer_config(&client_config(producer.clone()));
        let producer: Result<BaseProducer<Deaf>, _> = producer.create_with_context(Deaf);
        match consumer.err().or(producer.err()) {
            None => Ok(()),
            Some(
                KafkaError::ClientCreation(message) | KafkaError::ClientConfig(_, message, ..),
            ) => Err(message),
            Some(other) => Err(other.to_string()),
        }
    }
}

/// What the library means, by the words that it begins with: it tells a word for a number apart from one that it does not know.
fn refusal(message: String) -> Refusal {
    if message.starts_with("No such") {
        Refusal::Unknown
    } else if message.starts_with("Invalid value for configuration property") {
        Refusal::NotANumber(message)
    } else {
        Refusal::Value(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use retide_config::property::NAMES;
    use retide_config::{Config, Overrides, Source};

    fn read(text: &str) -> Result<Config, String> {
        let source = Source::text("retide.toml", text.to_owned()).unwrap();
        let config = Config::from_source(&source, &Overrides::default(), &Librdkafka);
        config.map_err(|error| error.to_string())
    }

    #[test]
    fn every_name_is_known_to_the_client() {
        for name in NAMES {
            assert_ne!(
                Librdkafka.check(name, "no-such-value"),
                Err(Refusal::Unknown),
                "{name}"
            );
        }
        assert_eq!(
            Librdkafka.check("no.such.property", "1"),
            Err(Refusal::Unknown)
        );
    }

    #[test]
    fn a_number_is_told_from_words_and_from_what_may_be_either() {
        let numbers = [
            "session.timeout.ms",
            "linger.ms",
            "fetch.max.bytes",
            "queued.max.messages.kbytes",
            "batch.num.messages",
            "retries",
            "message.timeout.ms",
            "request.timeout.ms",
            "metadata.max.age.ms",
        ];
        let others = [
            "client.id",
            "sasl.password",
            "bootstrap.servers",
            "security.protocol",
            "enable.ssl.certificate.verification",
            "no.such.property",
        ];
        let is_number = |property: &&str| {
            matches!(
                Librdkafka.check(property, "no-number"),
                Err(Refusal::NotANumber(_))
            )
        };

        assert_eq!(numbers.iter().copied().find(|name| !is_number(name)), None);
        assert_eq!(others.iter().copied().find(is_number), None);
    }

    #[test]
    fn what_runs_would_refuse_of_the_clients_properties_is_refused_at_once() {
        for (text, expected) in [
            (
                "[kafka]\nclient.id = 'x'\nacks = 1",
                "retide.toml:3:1: kafka.acks: `acks` must be set to `all`",
            ),
            (
                "[kafka.producer]\nretries = 0",
                "retide.toml:2:1: kafka.producer.retries: ",
            ),
            (
                "[kafka]\n\nbootstrap.server = 'h:1'",
                "retide.toml:3:11: kafka.bootstrap.server: `bootstrap.server` is no property of the Kafka client; did you mean `bootstrap.servers`?",
            ),
            (
                "[kafka]\nbootstrap_servers = 'h:1'",
                "retide.toml:2:1: kafka.bootstrap_servers: `bootstrap_servers` is no property of the Kafka client; did you mean `bootstrap.servers`?",
            ),
            (
                "[kafka]\n[kafka.consumer]\n'group.id' = 'x'",
                "retide.toml:3:1: kafka.consumer.group.id: `group.id` is set by retide: set `group` in [processor]",
            ),
            (
                "[processor]\nmemory_limit = '1MiB'",
                "retide.toml:2:1: processor.memory_limit: expected at least 16MiB, found 1MiB",
            ),
        ] {
            let message = read(text).expect_err("refused");
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(read("[kafka]\nacks = 'all'\nlinger.ms = 3").is_ok());
    }

    #[test]
    fn a_word_for_a_number_is_refused_where_it_stands_with_the_number_that_was_meant() {
        assert_eq!(
            read("[kafka.consumer]\nsession.timeout.ms = '10s'\n").map(|_| ()),
            Err(
                "retide.toml:2:17: kafka.consumer.session.timeout.ms: expected a whole number of milliseconds, found \"10s\"; \
                 write 10000"
                    .to_owned()
            )
        );
        for (text, refused) in [
            ("'message.timeout.ms' = '30s'", true),
            ("acks = -1", false),
            ("acks = 'all'", false),
            ("client.id = '10s'", false),
            ("sasl.password = '7days'", false),
            ("enable.ssl.certificate.verification = '1'", false),
        ] {
            let read = read(&format!("[kafka]\n{text}\n"));
            assert_eq!(read.is_err(), refused, "{text}: {:?}", read.err());
        }
    }

    #[test]
    fn no_error_shows_a_secret() {
        for text in [
            "[kafka]\nsecurity.protocol = 's3cret'",
            "[kafka]\nno.such.property = 's3cret'",
        ] {
            let message = read(text).expect_err("refused");

            assert!(!message.contains("s3cret"), "{message}");
        }
    }
}
