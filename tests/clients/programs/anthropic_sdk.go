package main

import (
	"context"
	"fmt"
	"os"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
)

func main() {
	which, prompt := os.Args[1], os.Args[2]
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client := anthropic.NewClient(option.WithMaxRetries(0))
	tool := anthropic.ToolParam{
		Name:        "get_weather",
		Description: anthropic.String("The weather of a city"),
		InputSchema: anthropic.ToolInputSchemaParam{Properties: map[string]any{"city": map[string]any{"type": "string"}}},
	}
	request := anthropic.MessageNewParams{
		Model:     "claude-sonnet-4-5",
		MaxTokens: 1000,
		Tools:     []anthropic.ToolUnionParam{{OfTool: &tool}},
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(prompt))},
	}
	if which == "tool" {
		called, err := client.Messages.New(ctx, request)
		check(err)
		var results []anthropic.ContentBlockParamUnion
		for _, block := range called.Content {
			if block.Type == "tool_use" {
				results = append(results, anthropic.NewToolResultBlock(block.ID, "output-of-the-clients-tool", false))
			}
		}
		request.Messages = append(request.Messages, called.ToParam(), anthropic.NewUserMessage(results...))
		answer, err := client.Messages.New(ctx, request)
		check(err)
		fmt.Println(answer.Content[0].Text)
		return
	}
	stream := client.Messages.NewStreaming(ctx, request)
	for stream.Next() {
		event := stream.Current()
		if event.Type != "content_block_delta" {
			continue
		}
		fmt.Print(event.Delta.Text)
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
