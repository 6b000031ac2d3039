"""Makes and reads golden bytes with fastavro and Confluent's serializers: `make|read LIBRARY NAME=FILE...`; see ../README.md."""

import base64
import datetime
import io
import json
import struct
import sys

import fastavro

TASK = {
    "scene": "pay",
    "id": "order-7",
    "payload": b'{"amount":5}',
    "contentType": "application/json",
    "headers": [{"name": "trace", "value": b"t-1"}, {"name": "empty", "value": None}],
    "key": b"k-7",
    "dueAt": 1795836382000,
    "delayMs": None,
    "deadlineAt": 1795839982000,
    "version": 2,
    "trace": {"hops": [1.5, 2.5], "tags": {"a": "b"}},
    "note": "grown",
}


def task(name):
    if name == "text":
        headers = {"trace": "t-1", "empty": None}
        return TASK | {"payload": '{"amount":5}', "key": "k-7", "headers": headers}
    if name == "micros":
        return TASK | {"dueAt": TASK["dueAt"] * 1000, "deadlineAt": TASK["deadlineAt"] * 1000}
    return TASK


def line(library, name, frame, schema_id, value, **more):
    values = {"library": library, "schema": name, "frame": frame, "id": schema_id, "value": value.hex()}
    print(json.dumps(values | more, separators=(",", ":")))


def plain(value):
    if isinstance(value, dict):
        return {name: plain(value) for name, value in value.items()}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.datetime):
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
        return (value - epoch) // datetime.timedelta(milliseconds=1)
    return value


def fastavro_make(schemas):
    for schema_id, (name, text) in enumerate(schemas.items(), 101):
        schema = fastavro.parse_schema(json.loads(text))
        canonical = fastavro.schema.to_parsing_canonical_form(json.loads(text))
        # fastavro gives the number's bytes in their order on the wire.
        fingerprint = fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, task(name))
        line("fastavro", name, "single-object", schema_id, b"\xc3\x01" + bytes.fromhex(fingerprint) + out.getvalue())
        line("fastavro", name, "confluent", schema_id, struct.pack(">bI", 0, schema_id) + out.getvalue())


def fastavro_read(schemas):
    for text in sys.stdin:
        given = json.loads(text)
        schema = json.loads(schemas[given["schema"]])
        value = bytes.fromhex(given["value"])
        start = 5
        if given["frame"] == "single-object":
            canonical = fastavro.schema.to_parsing_canonical_form(schema)
            fingerprint = bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))
            assert value[:10] == b"\xc3\x01" + fingerprint, "the fingerprint is another one"
            start = 10
        rest = io.BytesIO(value[start:])
        print(json.dumps(plain(fastavro.schemaless_reader(rest, fastavro.parse_schema(schema), None))))


def registry():
    from confluent_kafka.schema_registry import SchemaRegistryClient

    return SchemaRegistryClient.new_client({"url": "mock://"})


def confluent_make(schemas):
    from confluent_kafka.schema_registry import Schema, header_schema_id_serializer
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.schema_registry.json_schema import JSONSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = registry()
    # The numbers are those of the other programs.
    for filler in range(100):
        client.register_schema(f"filler-{filler}", Schema(json.dumps({"type": "fixed", "name": f"F{filler}", "size": 1}), "AVRO"))
    for name, text in schemas.items():
        topic = f"retry.{name}"
        context = SerializationContext(topic, MessageField.VALUE, [])
        value = AvroSerializer(client, text)(task(name), context)
        schema_id = client.get_latest_version(f"{topic}-value").schema_id
        line("confluent", name, "confluent", schema_id, value)
        by_header = AvroSerializer(client, text, conf={"schema.id.serializer": header_schema_id_serializer})
        value = by_header(task(name), context)
        headers = [[header, value.hex()] for header, value in context.headers]
        line("confluent", name, "header-guid", schema_id, value, headers=headers)
        # Registries before GUIDs: the number in the header.
        headers = [["__value_schema_id", struct.pack(">bI", 0, schema_id).hex()]]
        line("confluent", name, "header-id", schema_id, value, headers=headers)
    schema = {"title": "RetryTask", "type": "object", "properties": {"scene": {"type": "string"}}}
    context = SerializationContext("retry.json", MessageField.VALUE, [])
    envelope = {"scene": "pay", "id": "order-7", "payload": {"amount": 5}}
    value = JSONSerializer(json.dumps(schema), client)(envelope, context)
    line("confluent", "json-schema", "confluent", client.get_latest_version("retry.json-value").schema_id, value)


def confluent_read(schemas):
    from confluent_kafka.schema_registry import Schema
    from confluent_kafka.schema_registry.avro import AvroDeserializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = registry()
    ids = {name: client.register_schema(f"{name}-value", Schema(text, "AVRO")) for name, text in schemas.items()}
    for text in sys.stdin:
        given = json.loads(text)
        value = bytes.fromhex(given["value"])
        # The mock registry gives numbers of its own.
        value = value[:1] + struct.pack(">I", ids[given["schema"]]) + value[5:]
        context = SerializationContext(given["schema"], MessageField.VALUE)
        print(json.dumps(plain(AvroDeserializer(client)(value, context))))


if __name__ == "__main__":
    command, library, *files = sys.argv[1:]
    files = dict(file.split("=", 1) for file in files)
    globals()[f"{library}_{command}"]({name: open(file).read() for name, file in files.items()})
