import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeader;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.SessionWindowedDeserializer;
import org.apache.kafka.streams.kstream.TimeWindowedDeserializer;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.kstream.Windowed;
import org.apache.kafka.streams.kstream.WindowedSerdes;

/**
 * Kafka's Java clients and Kafka Streams, as the tests use them: each line of input is a command in JSON, each line
 * of output the answer to one. Keys and values are Base64, null where they are null. Argument: the brokers' addresses.
 */
public final class Peer {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Duration DEADLINE = Duration.ofSeconds(60);
    private final String brokers;

    private Peer(String brokers) {
        this.brokers = brokers;
    }

    public static void main(String[] arguments) throws Exception {
        Peer peer = new Peer(arguments[0]);
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        say(JSON.createObjectNode().put("ready", true));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            JsonNode command = JSON.readTree(line);
            switch (command.get("do").asText()) {
                case "write" -> say(peer.write(command));
                case "read" -> say(peer.read(command));
                case "count" -> say(peer.count(command));
                default -> throw new IllegalArgumentException(line);
            }
        }
    }

    /** Records through the producer, with its own partitioner. */
    private ObjectNode write(JsonNode command) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", brokers);
        settings.put("compression.type", command.get("compression").asText());
        List<Future<RecordMetadata>> sent = new ArrayList<>();
        String topic = command.get("topic").asText();
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (JsonNode each : command.get("records")) {
                List<Header> headers = new ArrayList<>();
                for (JsonNode header : each.get("headers")) {
                    headers.add(new RecordHeader(header.get(0).asText(), bytes(header.get(1))));
                }
                JsonNode time = each.get("timestamp");
                sent.add(producer.send(new ProducerRecord<>(topic, null, time.isNull() ? null : time.asLong(),
                        bytes(each.get("key")), bytes(each.get("value")), headers)));
            }
            producer.flush();
        }
        ArrayNode partitions = JSON.createArrayNode();
        for (Future<RecordMetadata> each : sent) {
            partitions.add(each.get().partition());
        }
        ObjectNode answer = JSON.createObjectNode();
        answer.set("written", partitions);
        return answer;
    }

    /** What is committed in a topic, up to its end; windowed keys (of strings) by Kafka Streams' deserializers. */
    private ObjectNode read(JsonNode command) {
        Deserializer<?> keys = switch (command.get("keys").asText()) {
            case "windows" -> new TimeWindowedDeserializer<>(new StringDeserializer(), command.get("size_ms").asLong());
            case "sessions" -> new SessionWindowedDeserializer<>(new StringDeserializer());
            default -> new ByteArrayDeserializer();
        };
        Properties settings = new Properties();
        settings.put("bootstrap.servers", brokers);
        settings.put("isolation.level", "read_committed");
        String topic = command.get("topic").asText();
        ArrayNode found = JSON.createArrayNode();
        try (var consumer = new KafkaConsumer<>(settings, keys, new ByteArrayDeserializer())) {
            List<TopicPartition> all = consumer.partitionsFor(topic).stream()
                    .map(each -> new TopicPartition(topic, each.partition())).toList();
            consumer.assign(all);
            consumer.seekToBeginning(all);
            Map<TopicPartition, Long> ends = consumer.endOffsets(all);
            long patience = System.nanoTime() + DEADLINE.toNanos();
            while (all.stream().anyMatch(each -> consumer.position(each) < ends.get(each))) {
                if (System.nanoTime() > patience) {
                    throw new IllegalStateException(topic + " was not read to its end in time");
                }
                for (ConsumerRecord<?, byte[]> each : consumer.poll(Duration.ofMillis(100))) {
                    found.add(shown(each));
                }
            }
        }
        ObjectNode answer = JSON.createObjectNode();
        answer.set("read", found);
        return answer;
    }

    private static ObjectNode shown(ConsumerRecord<?, byte[]> record) {
        ObjectNode node = JSON.createObjectNode();
        node.put("partition", record.partition()).put("offset", record.offset()).put("timestamp", record.timestamp());
        if (record.key() instanceof Windowed<?> key) {
            node.put("key", key.key().toString());
            node.put("start", key.window().start()).put("end", key.window().end());
        } else {
            node.put("key", (byte[]) record.key());
        }
        node.put("value", record.value());
        ArrayNode headers = node.putArray("headers");
        record.headers().forEach(each -> headers.addArray().add(each.key()).add(each.value()));
        return node;
    }

    /** Counts by key and by key and window, exactly once; ends when all that the topic holds is committed. */
    private ObjectNode count(JsonNode command) throws Exception {
        String application = command.get("application").asText();
        String topic = command.get("topic").asText();
        long size = command.get("size_ms").asLong();
        StreamsBuilder builder = new StreamsBuilder();
        KGroupedStream<String, String> grouped =
                builder.stream(topic, Consumed.with(Serdes.String(), Serdes.String())).groupByKey();
        grouped.count().toStream().mapValues(String::valueOf)
                .to(command.get("counts").asText(), Produced.with(Serdes.String(), Serdes.String()));
        grouped.windowedBy(TimeWindows.ofSizeWithNoGrace(Duration.ofMillis(size))).count().toStream()
                .mapValues(String::valueOf).to(command.get("windows").asText(),
                        Produced.with(WindowedSerdes.timeWindowedSerdeFrom(String.class, size), Serdes.String()));
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, brokers);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, command.get("folder").asText());
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put("auto.offset.reset", "earliest");
        try (Admin admin = Admin.create(settings); KafkaStreams streams = new KafkaStreams(builder.build(), settings)) {
            streams.start();
            long patience = System.nanoTime() + DEADLINE.toNanos();
            while (!isDone(admin, application, topic)) {
                if (System.nanoTime() > patience || streams.state() == KafkaStreams.State.ERROR) {
                    throw new IllegalStateException("not counted: " + streams.state());
                }
                Thread.sleep(50);
            }
        }
        return JSON.createObjectNode().put("counted", true);
    }

    private static boolean isDone(Admin admin, String group, String topic) throws Exception {
        var committed = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        var partitions = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions();
        for (var each : partitions) {
            TopicPartition place = new TopicPartition(topic, each.partition());
            var latest = Map.of(place, org.apache.kafka.clients.admin.OffsetSpec.latest());
            long end = admin.listOffsets(latest).partitionResult(place).get().offset();
            var position = committed.get(place);
            if (end > 0 && (position == null || position.offset() < end)) {
                return false;
            }
        }
        return true;
    }

    private static byte[] bytes(JsonNode text) {
        return text.isNull() ? null : Base64.getDecoder().decode(text.asText());
    }

    private static void say(ObjectNode answer) throws Exception {
        System.out.println(JSON.writeValueAsString(answer));
    }
}
