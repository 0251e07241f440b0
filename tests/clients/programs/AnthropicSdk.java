import com.anthropic.client.AnthropicClient;
import com.anthropic.client.okhttp.AnthropicOkHttpClient;
import com.anthropic.core.JsonValue;
import com.anthropic.models.messages.ContentBlockParam;
import com.anthropic.models.messages.Message;
import com.anthropic.models.messages.MessageCreateParams;
import com.anthropic.models.messages.Tool;
import com.anthropic.models.messages.ToolResultBlockParam;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.URI;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;

public class AnthropicSdk {
    public static void main(String[] args) {
        String which = args[0];
        var builder = AnthropicOkHttpClient.builder().fromEnv().maxRetries(0);
        String proxy = System.getenv("HTTPS_PROXY");
        if (proxy != null) {
            URI uri = URI.create(proxy);
            builder.proxy(new Proxy(Proxy.Type.HTTP, new InetSocketAddress(uri.getHost(), uri.getPort())));
        }
        AnthropicClient client = builder.build();
        Tool.InputSchema schema = Tool.InputSchema.builder()
                .properties(JsonValue.from(Map.of("city", Map.of("type", "string"))))
                .build();
        Tool tool = Tool.builder().name("get_weather").description("The weather of a city").inputSchema(schema).build();
        MessageCreateParams.Builder request = MessageCreateParams.builder()
                .model("claude-sonnet-4-5").maxTokens(1000).addTool(tool).addUserMessage(args[1]);
        if (which.equals("tool")) {
            Message called = client.messages().create(request.build());
            List<ContentBlockParam> results = new ArrayList<>();
            called.content().forEach(block -> block.toolUse().ifPresent(use -> results.add(
                    ContentBlockParam.ofToolResult(ToolResultBlockParam.builder()
                            .toolUseId(use.id()).content("output-of-the-clients-tool").build()))));
            request.addMessage(called).addUserMessageOfContentBlockParams(results);
            client.messages().create(request.build()).content()
                    .forEach(block -> block.text().ifPresent(text -> System.out.println(text.text())));
            System.exit(0);
        }
        try (var stream = client.messages().createStreaming(request.build())) {
            for (var event : (Iterable<com.anthropic.models.messages.RawMessageStreamEvent>) stream.stream()::iterator) {
                var text = event.contentBlockDelta().flatMap(delta -> delta.delta().text());
                if (text.isEmpty()) continue;
                System.out.print(text.get().text());
                System.out.flush();
                if (which.equals("cancelled")) break;
            }
        }
        System.exit(0);
    }
}
