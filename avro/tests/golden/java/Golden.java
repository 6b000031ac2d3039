import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.*;
import org.apache.avro.Schema;
import org.apache.avro.SchemaNormalization;
import org.apache.avro.generic.*;
import org.apache.avro.io.*;
import org.apache.avro.message.*;

/** Makes and reads golden bytes with Avro for Java. {@code make|read NAME=FILE...}; see ../README.md. */
public class Golden {
  static final ObjectMapper JSON = new ObjectMapper();
  static final Map<String, Object> TASK = new HashMap<>();

  static {
    TASK.put("scene", "pay");
    TASK.put("id", "order-7");
    TASK.put("payload", "{\"amount\":5}");
    TASK.put("contentType", "application/json");
    TASK.put("key", "k-7");
    TASK.put("dueAt", 1795836382000L);
    TASK.put("deadlineAt", 1795839982000L);
    TASK.put("version", 2);
    TASK.put("note", "grown");
  }

  public static void main(String[] args) throws Exception {
    Map<String, Schema> schemas = new LinkedHashMap<>();
    for (String arg : Arrays.copyOfRange(args, 1, args.length)) {
      String[] parts = arg.split("=", 2);
      schemas.put(parts[0], new Schema.Parser().parse(Files.readString(Path.of(parts[1]))));
    }
    if (args[0].equals("make")) make(schemas); else read(schemas);
  }

  static void make(Map<String, Schema> schemas) throws Exception {
    int id = 100;
    for (Map.Entry<String, Schema> entry : schemas.entrySet()) {
      id++;
      Schema schema = entry.getValue();
      GenericRecord task = task(schema);
      byte[] single = bytes(new BinaryMessageEncoder<>(GenericData.get(), schema).encode(task));
      line("java", entry.getKey(), "single-object", id, single);
      ByteArrayOutputStream out = new ByteArrayOutputStream();
      out.write(0);
      out.write(ByteBuffer.allocate(4).putInt(id).array());
      BinaryEncoder encoder = EncoderFactory.get().binaryEncoder(out, null);
      new GenericDatumWriter<GenericRecord>(schema).write(task, encoder);
      encoder.flush();
      line("java", entry.getKey(), "confluent", id, out.toByteArray());
    }
  }

  static GenericRecord task(Schema schema) {
    GenericRecord task = new GenericData.Record(schema);
    for (Schema.Field field : schema.getFields()) {
      task.put(field.name(), value(field.name(), field.schema()));
    }
    return task;
  }

  static Object value(String name, Schema schema) {
    if (name.equals("headers")) {
      if (schema.getType() == Schema.Type.MAP) {
        Map<String, Object> headers = new LinkedHashMap<>();
        headers.put("trace", "t-1");
        headers.put("empty", null);
        return headers;
      }
      GenericRecord trace = new GenericData.Record(schema.getElementType());
      trace.put("name", "trace");
      trace.put("value", ByteBuffer.wrap("t-1".getBytes(StandardCharsets.UTF_8)));
      GenericRecord empty = new GenericData.Record(schema.getElementType());
      empty.put("name", "empty");
      return List.of(trace, empty);
    }
    if (name.equals("trace")) {
      GenericRecord trace = new GenericData.Record(schema.getTypes().get(1));
      trace.put("hops", List.of(1.5, 2.5));
      Map<String, Object> tags = new LinkedHashMap<>();
      tags.put("a", "b");
      trace.put("tags", tags);
      return trace;
    }
    Object value = TASK.get(name);
    Schema inner = schema;
    if (schema.getType() == Schema.Type.UNION) {
      for (Schema branch : schema.getTypes()) {
        if (branch.getType() != Schema.Type.NULL) inner = branch;
      }
    }
    if (value == null) return null;
    if (inner.getType() == Schema.Type.BYTES) {
      return ByteBuffer.wrap(((String) value).getBytes(StandardCharsets.UTF_8));
    }
    if (inner.getLogicalType() != null && inner.getLogicalType().getName().equals("timestamp-micros")) {
      return (Long) value * 1000;
    }
    return value;
  }

  static void read(Map<String, Schema> schemas) throws Exception {
    Scanner lines = new Scanner(System.in, StandardCharsets.UTF_8);
    while (lines.hasNextLine()) {
      JsonNode line = JSON.readTree(lines.nextLine());
      byte[] value = HexFormat.of().parseHex(line.get("value").asText());
      Schema schema = schemas.get(line.get("schema").asText());
      GenericRecord record;
      if (line.get("frame").asText().equals("single-object")) {
        record = new BinaryMessageDecoder<GenericRecord>(GenericData.get(), schema).decode(value);
      } else {
        BinaryDecoder decoder = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, null);
        record = new GenericDatumReader<GenericRecord>(schema).read(null, decoder);
      }
      System.out.println(JSON.writeValueAsString(plain(record)));
    }
  }

  static Object plain(Object value) {
    if (value instanceof GenericRecord record) {
      Map<String, Object> fields = new LinkedHashMap<>();
      record.getSchema().getFields().forEach(f -> fields.put(f.name(), plain(record.get(f.pos()))));
      return fields;
    }
    if (value instanceof ByteBuffer buffer) return Base64.getEncoder().encodeToString(bytes(buffer));
    return value instanceof CharSequence ? value.toString() : value;
  }

  static byte[] bytes(ByteBuffer buffer) {
    byte[] bytes = new byte[buffer.remaining()];
    buffer.duplicate().get(bytes);
    return bytes;
  }

  static void line(String library, String schema, String frame, int id, byte[] value) throws Exception {
    Map<String, Object> line = new LinkedHashMap<>();
    line.put("library", library);
    line.put("schema", schema);
    line.put("frame", frame);
    line.put("id", id);
    line.put("value", HexFormat.of().formatHex(value));
    System.out.println(JSON.writeValueAsString(line));
  }
}
