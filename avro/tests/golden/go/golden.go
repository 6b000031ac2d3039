// Makes and reads golden bytes with goavro and hamba/avro: `make|read LIBRARY NAME=FILE...`; see ../README.md.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	hamba "github.com/hamba/avro/v2"
	"github.com/linkedin/goavro/v2"
)

type line struct {
	Library string `json:"library"`
	Schema  string `json:"schema"`
	Frame   string `json:"frame"`
	ID      uint32 `json:"id"`
	Value   string `json:"value"`
}

type schema struct{ name, text string }

var due = time.UnixMilli(1795836382000).UTC()
var deadline = time.UnixMilli(1795839982000).UTC()

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func union(kind string, value any) map[string]any { return map[string]any{kind: value} }

// The task as both libraries take it: a union is a map with the name of its branch.
func task(name string) map[string]any {
	clock := "long.timestamp-millis"
	if name == "micros" {
		clock = "long.timestamp-micros"
	}
	header := func(name string, value any) map[string]any {
		return map[string]any{"name": name, "value": value}
	}
	task := map[string]any{
		"scene":       "pay",
		"id":          union("string", "order-7"),
		"payload":     []byte(`{"amount":5}`),
		"contentType": union("string", "application/json"),
		"headers":     []any{header("trace", union("bytes", []byte("t-1"))), header("empty", nil)},
		"key":         union("bytes", []byte("k-7")),
		"dueAt":       union(clock, due),
		"delayMs":     nil,
		"deadlineAt":  union(clock, deadline),
		"version":     2,
		"note":        "grown",
		"trace": union("io.retide.Trace", map[string]any{
			"hops": []any{1.5, 2.5},
			"tags": map[string]any{"a": union("string", "b")},
		}),
	}
	if name == "text" {
		task["payload"] = `{"amount":5}`
		task["key"] = union("string", "k-7")
		// One header, since a map of Go has no order.
		task["headers"] = map[string]any{"trace": union("string", "t-1")}
	}
	return task
}

func confluent(id uint32, datum []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, id), datum...)
}

func emit(library, name, frame string, id uint32, value []byte) {
	text, err := json.Marshal(line{library, name, frame, id, hex.EncodeToString(value)})
	check(err)
	fmt.Println(string(text))
}

func makeAll(library string, schemas []schema) {
	for index, schema := range schemas {
		id := uint32(101 + index)
		if library == "goavro" {
			codec, err := goavro.NewCodec(schema.text)
			check(err)
			value, err := codec.SingleFromNative(nil, task(schema.name))
			check(err)
			emit(library, schema.name, "single-object", id, value)
			datum, err := codec.BinaryFromNative(nil, task(schema.name))
			check(err)
			emit(library, schema.name, "confluent", id, confluent(id, datum))
			continue
		}
		parsed, err := hamba.ParseWithCache(schema.text, "", &hamba.SchemaCache{})
		check(err)
		datum, err := hamba.Marshal(parsed, task(schema.name))
		check(err)
		fingerprint, err := parsed.FingerprintUsing(hamba.CRC64AvroLE)
		check(err)
		emit(library, schema.name, "single-object", id, append(append([]byte{0xc3, 0x01}, fingerprint...), datum...))
		emit(library, schema.name, "confluent", id, confluent(id, datum))
	}
}

func plain(value any) any {
	switch value := value.(type) {
	case []byte:
		return base64.StdEncoding.EncodeToString(value)
	case time.Time:
		return value.UnixMilli()
	case map[string]any:
		if len(value) == 1 {
			for kind, inner := range value {
				// The branch of a union: no record here has one field only.
				if kind == "string" || kind == "bytes" || strings.HasPrefix(kind, "long") || strings.HasPrefix(kind, "io.") {
					return plain(inner)
				}
			}
		}
		fields := map[string]any{}
		for name, field := range value {
			fields[name] = plain(field)
		}
		return fields
	default:
		return value
	}
}

func readAll(library string, schemas []schema) {
	texts := map[string]string{}
	for _, schema := range schemas {
		texts[schema.name] = schema.text
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var given line
		check(json.Unmarshal(lines.Bytes(), &given))
		value, err := hex.DecodeString(given.Value)
		check(err)
		text := texts[given.Schema]
		start := 5
		if given.Frame == "single-object" {
			start = 10
		}
		var record any
		if library == "goavro" {
			codec, err := goavro.NewCodec(text)
			check(err)
			record, _, err = codec.NativeFromBinary(value[start:])
			check(err)
		} else {
			parsed, err := hamba.ParseWithCache(text, "", &hamba.SchemaCache{})
			check(err)
			if given.Frame == "single-object" {
				fingerprint, err := parsed.FingerprintUsing(hamba.CRC64AvroLE)
				check(err)
				if !bytes.Equal(value[2:10], fingerprint) {
					panic("the fingerprint is another one")
				}
			}
			check(hamba.Unmarshal(parsed, value[start:], &record))
		}
		out, err := json.Marshal(plain(record))
		check(err)
		fmt.Println(string(out))
	}
}

func main() {
	schemas := []schema{}
	for _, file := range os.Args[3:] {
		name, path, _ := strings.Cut(file, "=")
		text, err := os.ReadFile(path)
		check(err)
		schemas = append(schemas, schema{name, string(text)})
	}
	if os.Args[1] == "make" {
		makeAll(os.Args[2], schemas)
	} else {
		readAll(os.Args[2], schemas)
	}
}
