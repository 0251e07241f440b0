import com.openai.client.OpenAIClient;
import com.openai.client.okhttp.OpenAIOkHttpClient;
import com.openai.core.JsonValue;
import com.openai.models.FunctionDefinition;
import com.openai.models.FunctionParameters;
import com.openai.models.chat.completions.ChatCompletionChunk;
import com.openai.models.chat.completions.ChatCompletionCreateParams;
import com.openai.models.chat.completions.ChatCompletionFunctionTool;
import com.openai.models.chat.completions.ChatCompletionMessage;
import com.openai.models.chat.completions.ChatCompletionToolMessageParam;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.URI;
import java.util.Map;

public class OpenaiSdk {
    public static void main(String[] args) {
        String which = args[0];
        var builder = OpenAIOkHttpClient.builder().fromEnv().maxRetries(0);
        String proxy = System.getenv("HTTPS_PROXY");
        if (proxy != null) {
            URI uri = URI.create(proxy);
            builder.proxy(new Proxy(Proxy.Type.HTTP, new InetSocketAddress(uri.getHost(), uri.getPort())));
        }
        OpenAIClient client = builder.build();
        FunctionParameters parameters = FunctionParameters.builder()
                .putAdditionalProperty("type", JsonValue.from("object"))
                .putAdditionalProperty("properties", JsonValue.from(Map.of("city", Map.of("type", "string"))))
                .build();
        FunctionDefinition function = FunctionDefinition.builder()
                .name("get_weather").description("The weather of a city").parameters(parameters).build();
        ChatCompletionCreateParams.Builder request = ChatCompletionCreateParams.builder()
                .model("gpt-4.1")
                .addTool(ChatCompletionFunctionTool.builder().function(function).build())
                .addUserMessage(args[1]);
        if (which.equals("tool")) {
            ChatCompletionMessage called = client.chat().completions().create(request.build()).choices().get(0).message();
            request.addMessage(called);
            called.toolCalls().orElseThrow().forEach(call -> request.addMessage(
                    ChatCompletionToolMessageParam.builder()
                            .toolCallId(call.asFunction().id()).content("output-of-the-clients-tool").build()));
            var answer = client.chat().completions().create(request.build());
            System.out.println(answer.choices().get(0).message().content().orElse(""));
            System.exit(0);
        }
        try (var stream = client.chat().completions().createStreaming(request.build())) {
            for (var chunk : (Iterable<ChatCompletionChunk>) stream.stream()::iterator) {
                if (chunk.choices().isEmpty()) continue;
                String text = chunk.choices().get(0).delta().content().orElse("");
                if (text.isEmpty()) continue;
                System.out.print(text);
                System.out.flush();
                if (which.equals("cancelled")) break;
            }
        }
        System.exit(0);
    }
}
