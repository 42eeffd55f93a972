import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Properties;
import java.util.stream.Stream;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.TestInputTopic;
import org.apache.kafka.streams.TestOutputTopic;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.kstream.*;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.SessionStore;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.test.TestRecord;

/** Reads conformance cases from standard input, a JSON object a line, and writes them with what Kafka Streams puts out. */
public class Record {
    static final ObjectMapper JSON = new ObjectMapper();
    static final Serde<String> TEXT = Serdes.String();
    static final Consumed<String, String> READ = Consumed.with(TEXT, TEXT);
    static final Grouped<String, String> GROUPED = Grouped.with(TEXT, TEXT);
    static final Aggregator<String, String, String> ADD = (key, value, so) -> so + (value == null ? "_" : value) + ";";
    static final Merger<String, String> MERGE = (key, left, right) -> left + right;
    static final ValueJoiner<String, String, String> PAIR = (left, right) -> left + "," + right;

    public static void main(String[] words) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = lines.readLine()) != null; ) {
            ObjectNode found = (ObjectNode) JSON.readTree(line);
            run(found);
            System.out.println(JSON.writeValueAsString(found));
        }
    }

    static void run(ObjectNode found) throws Exception {
        StreamsBuilder builder = new StreamsBuilder();
        program(builder, found.get("topology").asText(), found.get("params")).to("out", Produced.with(TEXT, TEXT));
        Path folder = Files.createTempDirectory("record");
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "record");
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, "none:1");
        settings.put(StreamsConfig.STATE_DIR_CONFIG, folder.toString());
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        settings.put(StreamsConfig.DEFAULT_KEY_SERDE_CLASS_CONFIG, TEXT.getClass().getName());
        settings.put(StreamsConfig.DEFAULT_VALUE_SERDE_CLASS_CONFIG, TEXT.getClass().getName());
        ArrayNode out = found.putArray("out");
        TopologyTestDriver driver = new TopologyTestDriver(builder.build(settings), settings, Instant.EPOCH);
        try {
            TestOutputTopic<String, String> results =
                driver.createOutputTopic("out", new StringDeserializer(), new StringDeserializer());
            for (JsonNode input : found.get("in")) {
                TestInputTopic<String, String> topic =
                    driver.createInputTopic(input.get(0).asText(), new StringSerializer(), new StringSerializer());
                topic.pipeInput(text(input.get(1)), text(input.get(2)), input.get(3).asLong());
                driver.advanceWallClockTime(Duration.ofSeconds(1));
                ArrayNode here = out.addArray();
                for (TestRecord<String, String> result : results.readRecordsToList()) {
                    here.addArray().add(result.key()).add(result.value()).add(result.timestamp());
                }
            }
        } catch (RuntimeException error) {
            Throwable cause = error.getCause();
            String name = error.getClass().getSimpleName();
            found.put("error", cause == null ? name : name + "/" + cause.getClass().getSimpleName());
        } finally {
            try {
                driver.close();
            } catch (RuntimeException ignored) {
                // a task that has failed does not close well
            }
            delete(folder);
        }
    }

    static void delete(Path folder) throws Exception {
        try (Stream<Path> paths = Files.walk(folder)) {
            for (Path path : paths.sorted((a, b) -> b.compareTo(a)).toList()) {
                Files.deleteIfExists(path);
            }
        }
    }

    static String text(JsonNode node) {
        return node.isNull() ? null : node.asText();
    }

    static Duration ms(JsonNode params, String name) {
        return Duration.ofMillis(params.path(name).asLong(0));
    }

    static KStream<String, String> program(StreamsBuilder builder, String topology, JsonNode params) {
        switch (topology) {
            case "aggregate":
                return grouped(builder, "a").aggregate(() -> "", ADD).toStream();
            case "reduce":
                return grouped(builder, "a").reduce((left, right) -> left + "+" + right).toStream();
            case "count":
                return grouped(builder, "a").count().toStream().mapValues(count -> count == null ? null : "" + count);
            case "tumbling":
            case "hopping":
                return windowed(builder, params, aligned(params));
            case "sliding":
                return sliding(builder, params);
            case "session":
                return session(builder, params);
            case "cogroup":
                return cogrouped(builder).aggregate(() -> "").toStream();
            case "cogroup_tumbling":
                return plain(cogrouped(builder).windowedBy(aligned(params)).aggregate(() -> "").toStream());
            case "merge":
                return builder.stream("a", READ).merge(builder.stream("b", READ));
            case "table_source":
                return builder.table("a", READ, Materialized.as("t")).toStream();
            case "to_table":
                return builder.stream("a", READ).toTable().toStream();
            case "table_filter":
                Predicate<String, String> even = (key, value) -> digit(value) % 2 == 0;
                KTable<String, String> source = builder.table("a", READ);
                return (params.get("materialized").asBoolean() ? source.filter(even, Materialized.as("even")) : source.filter(even)).toStream();
            case "table_groupby_count":
                return parity(builder).count().toStream().mapValues(count -> count == null ? null : "" + count);
            case "table_groupby_agg":
                return parity(builder).aggregate(() -> "", (k, v, so) -> so + "+" + v, (k, v, so) -> so + "-" + v).toStream();
            case "table_table":
                return tables(table(builder, "a", params), table(builder, "b", params), params).toStream();
            case "table_fk":
                KTable<String, String> left = table(builder, "a", params);
                KTable<String, String> right = table(builder, "b", params);
                return (inner(params) ? left.join(right, Record::foreign, PAIR) : left.leftJoin(right, Record::foreign, PAIR)).toStream();
            case "stream_stream":
                return streams(builder.stream("a", READ), builder.stream("b", READ), params);
            case "self_join":
                KStream<String, String> both = builder.stream("a", READ);
                return both.join(both, PAIR, reach(params));
            case "stream_table":
                return streamTable(builder, params);
            case "stream_global":
                GlobalKTable<String, String> global = builder.globalTable("b", READ);
                KStream<String, String> stream = builder.stream("a", READ);
                return inner(params) ? stream.join(global, (k, v) -> k, PAIR) : stream.leftJoin(global, (k, v) -> k, PAIR);
            case "suppress_time_limit":
                String bound = params.get("buffer").asText();
                Suppressed.BufferConfig<?> buffer = bound.equals("unbounded") ? Suppressed.BufferConfig.unbounded()
                    : Suppressed.BufferConfig.maxRecords(Long.parseLong(bound.split(" ")[1])).emitEarlyWhenFull();
                return builder.table("a", READ).suppress(Suppressed.untilTimeLimit(ms(params, "limit"), buffer)).toStream();
            default:
                throw new IllegalArgumentException(topology);
        }
    }

    static KGroupedStream<String, String> grouped(StreamsBuilder builder, String topic) {
        return builder.stream(topic, READ).groupByKey(GROUPED);
    }

    static KGroupedTable<String, String> parity(StreamsBuilder builder) {
        return builder.table("a", READ).groupBy((k, v) -> new org.apache.kafka.streams.KeyValue<>(digit(v) % 2 == 0 ? "even" : "odd", v), GROUPED);
    }

    static CogroupedKStream<String, String> cogrouped(StreamsBuilder builder) {
        return grouped(builder, "a").<String>cogroup((k, v, so) -> so + v + ";").cogroup(grouped(builder, "b"), (k, v, so) -> so + "(" + v + ")");
    }

    static int digit(String value) {
        return value.charAt(value.length() - 1) - '0';
    }

    static String foreign(String value) {
        int digit = digit(value);
        return digit < 4 ? "A" : digit < 7 ? "B" : digit < 9 ? "C" : null;
    }

    static boolean inner(JsonNode params) {
        return params.get("kind").asText().equals("inner");
    }

    static TimeWindows aligned(JsonNode params) {
        TimeWindows windows = TimeWindows.ofSizeAndGrace(ms(params, "size"), ms(params, "grace"));
        return params.has("advance") ? windows.advanceBy(ms(params, "advance")) : windows;
    }

    static <W> KStream<String, String> plain(KStream<Windowed<String>, String> stream) {
        return stream.selectKey((key, value) -> key.key() + "@" + key.window().start() + "/" + key.window().end());
    }

    static KStream<String, String> emitted(KTable<Windowed<String>, String> table, JsonNode params) {
        if (params.path("emit").asText("update").equals("suppress")) {
            table = table.suppress(Suppressed.untilWindowCloses(Suppressed.BufferConfig.unbounded()));
        }
        return plain(table.toStream());
    }

    static EmitStrategy strategy(JsonNode params) {
        return params.path("emit").asText("update").equals("close") ? EmitStrategy.onWindowClose() : EmitStrategy.onWindowUpdate();
    }

    static Materialized<String, String, WindowStore<Bytes, byte[]>> kept(JsonNode params) {
        Materialized<String, String, WindowStore<Bytes, byte[]>> found = Materialized.with(TEXT, TEXT);
        return params.path("long_retention").asBoolean() ? found.withRetention(Duration.ofDays(1)) : found;
    }

    static KStream<String, String> windowed(StreamsBuilder builder, JsonNode params, TimeWindows windows) {
        return emitted(grouped(builder, "a").windowedBy(windows).emitStrategy(strategy(params)).aggregate(() -> "", ADD, kept(params)), params);
    }

    static KStream<String, String> sliding(StreamsBuilder builder, JsonNode params) {
        SlidingWindows windows = SlidingWindows.ofTimeDifferenceAndGrace(ms(params, "difference"), ms(params, "grace"));
        return emitted(grouped(builder, "a").windowedBy(windows).emitStrategy(strategy(params)).aggregate(() -> "", ADD, kept(params)), params);
    }

    static KStream<String, String> session(StreamsBuilder builder, JsonNode params) {
        Materialized<String, String, SessionStore<Bytes, byte[]>> kept = Materialized.with(TEXT, TEXT);
        if (params.path("long_retention").asBoolean()) {
            kept = kept.withRetention(Duration.ofDays(1));
        }
        SessionWindows windows = SessionWindows.ofInactivityGapAndGrace(ms(params, "gap"), ms(params, "grace"));
        return emitted(grouped(builder, "a").windowedBy(windows).emitStrategy(strategy(params)).aggregate(() -> "", ADD, MERGE, kept), params);
    }

    static KTable<String, String> table(StreamsBuilder builder, String topic, JsonNode params) {
        if (params.path("versioned").asBoolean()) {
            return builder.table(topic, READ, Materialized.as(Stores.persistentVersionedKeyValueStore(topic + "-table", ms(params, "history"))));
        }
        return builder.table(topic, READ, Materialized.<String, String, KeyValueStore<Bytes, byte[]>>as(topic + "-table"));
    }

    static KTable<String, String> tables(KTable<String, String> left, KTable<String, String> right, JsonNode params) {
        switch (params.get("kind").asText()) {
            case "inner":
                return left.join(right, PAIR);
            case "left":
                return left.leftJoin(right, PAIR);
            default:
                return left.outerJoin(right, PAIR);
        }
    }

    static JoinWindows reach(JsonNode params) {
        long before = params.get("before").asLong();
        long after = params.get("after").asLong();
        return JoinWindows.ofTimeDifferenceAndGrace(Duration.ofMillis(Math.max(Math.abs(before), Math.abs(after))), ms(params, "grace"))
            .after(Duration.ofMillis(after)).before(Duration.ofMillis(before));
    }

    static KStream<String, String> streams(KStream<String, String> left, KStream<String, String> right, JsonNode params) {
        switch (params.get("kind").asText()) {
            case "inner":
                return left.join(right, PAIR, reach(params));
            case "left":
                return left.leftJoin(right, PAIR, reach(params));
            default:
                return left.outerJoin(right, PAIR, reach(params));
        }
    }

    static KStream<String, String> streamTable(StreamsBuilder builder, JsonNode params) {
        KStream<String, String> stream = builder.stream("a", READ);
        String kind = params.get("table").asText();
        KTable<String, String> table = kind.equals("plain") ? builder.table("b", READ)
            : builder.table("b", READ, Materialized.as(Stores.persistentVersionedKeyValueStore("b-table", ms(params, "history"))));
        Joined<String, String, String> joined = Joined.with(TEXT, TEXT, TEXT);
        if (kind.equals("versioned_grace")) {
            joined = joined.withGracePeriod(ms(params, "grace"));
        }
        return inner(params) ? stream.join(table, PAIR, joined) : stream.leftJoin(table, PAIR, joined);
    }
}
