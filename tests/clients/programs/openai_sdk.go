package main

import (
	"context"
	"fmt"
	"os"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func main() {
	which, prompt := os.Args[1], os.Args[2]
	ctx := context.Background()
	client := openai.NewClient(option.WithMaxRetries(0))
	request := openai.ChatCompletionNewParams{
		Model:    "gpt-4.1",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
		Tools: []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
			Name:        "get_weather",
			Description: openai.String("The weather of a city"),
			Parameters: openai.FunctionParameters{
				"type":       "object",
				"properties": map[string]any{"city": map[string]any{"type": "string"}},
			},
		})},
	}
	if which == "tool" {
		called, err := client.Chat.Completions.New(ctx, request)
		check(err)
		request.Messages = append(request.Messages, called.Choices[0].Message.ToParam())
		for _, call := range called.Choices[0].Message.ToolCalls {
			request.Messages = append(request.Messages, openai.ToolMessage("output-of-the-clients-tool", call.ID))
		}
		answer, err := client.Chat.Completions.New(ctx, request)
		check(err)
		fmt.Println(answer.Choices[0].Message.Content)
		return
	}
	stream := client.Chat.Completions.NewStreaming(ctx, request)
	for stream.Next() {
		chunk := stream.Current()
		if len(chunk.Choices) == 0 || chunk.Choices[0].Delta.Content == "" {
			continue
		}
		fmt.Print(chunk.Choices[0].Delta.Content)
		if which == "cancelled" {
			stream.Close()
			return
		}
	}
	check(stream.Err())
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
