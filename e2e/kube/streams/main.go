// Streams drives a streaming URL of the CRI with the clients that kubectl and the kubelet have: client-go's remotecommand
// and portforward.
//
//	streams command [flags] URL         exec or attach; its own stdin, stdout, stderr and exit code are the program's
//	streams forward [flags] URL PORT... port-forward until stdin ends; tells the local ports on stdout, errors on stderr
//	streams pairs [flags] URL PORT...   one connection, a pair of streams for each port, one after the other: sends a word,
//	                                    and tells what came back on both
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/httpstream"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

// Exit code of this program's own failures: no command of the tests has it.
const failed = 250

var (
	transport = flag.String("transport", "spdy", "spdy or websocket")
	protocols = flag.String("protocols", "", "sub-protocols to offer, with commas between; client-go's own without")
	ca        = flag.String("ca", "", "whom to trust where the URL is one of https, a file")
	stdin     = flag.Bool("stdin", false, "pass stdin on")
	stdout    = flag.Bool("stdout", true, "ask for stdout")
	stderr    = flag.Bool("stderr", false, "ask for stderr")
	tty       = flag.Bool("tty", false, "the other side is a terminal")
	sizes     = flag.String("sizes", "", "sizes of the terminal, ROWSxCOLUMNS with commas; each but the first follows a line of output")
)

func main() {
	verb := ""
	if len(os.Args) > 1 {
		verb = os.Args[1]
		os.Args = append(os.Args[:1], os.Args[2:]...)
	}
	flag.Parse()
	target, err := url.Parse(flag.Arg(0))
	if err == nil {
		switch verb {
		case "command":
			err = command(target)
		case "forward":
			err = forward(target, flag.Args()[1:])
		case "pairs":
			err = pairs(target, flag.Args()[1:])
		default:
			err = fmt.Errorf("streams command or streams forward, not %q", verb)
		}
	}
	var code exec.CodeExitError
	switch {
	case errors.As(err, &code):
		os.Exit(code.Code)
	case err != nil:
		fmt.Fprintln(os.Stderr, "streams:", err)
		os.Exit(failed)
	}
}

func command(target *url.URL) error {
	lines := &counter{to: os.Stdout, line: make(chan struct{}, 100)}
	options := remotecommand.StreamOptions{Tty: *tty}
	if *stdin {
		options.Stdin = os.Stdin
	}
	if *stdout {
		options.Stdout = lines
	}
	if *stderr {
		options.Stderr = os.Stderr
	}
	if *sizes != "" {
		options.TerminalSizeQueue = &queue{sizes: strings.Split(*sizes, ","), line: lines.line}
	}
	executor, err := executorOf(target)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), options)
}

func executorOf(target *url.URL) (remotecommand.Executor, error) {
	config := &restclient.Config{TLSClientConfig: restclient.TLSClientConfig{CAFile: *ca}}
	var offered []string
	if *protocols != "" {
		offered = strings.Split(*protocols, ",")
	}
	if *transport == "websocket" {
		if offered != nil {
			return remotecommand.NewWebSocketExecutorForProtocols(config, "GET", target.String(), offered...)
		}
		return remotecommand.NewWebSocketExecutor(config, "GET", target.String())
	}
	if offered != nil {
		roundTripper, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutorForProtocols(roundTripper, upgrader, "POST", target, offered...)
	}
	return remotecommand.NewSPDYExecutor(config, "POST", target)
}

// Counts the lines that pass.
type counter struct {
	to   io.Writer
	line chan struct{}
}

func (c *counter) Write(bytes []byte) (int, error) {
	for range strings.Count(string(bytes), "\n") {
		select {
		case c.line <- struct{}{}:
		default:
		}
	}
	return c.to.Write(bytes)
}

// Tells the sizes, one after each line.
type queue struct {
	sizes []string
	line  chan struct{}
	begun bool
}

func (q *queue) Next() *remotecommand.TerminalSize {
	if q.begun {
		<-q.line
	}
	q.begun = true
	if len(q.sizes) == 0 {
		select {}
	}
	var size remotecommand.TerminalSize
	if _, err := fmt.Sscanf(q.sizes[0], "%dx%d", &size.Height, &size.Width); err != nil {
		return nil
	}
	q.sizes = q.sizes[1:]
	return &size
}

func dialerOf(target *url.URL) (httpstream.Dialer, error) {
	config := &restclient.Config{TLSClientConfig: restclient.TLSClientConfig{CAFile: *ca}}
	if *transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(target, config)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, "POST", target), nil
}

func pairs(target *url.URL, ports []string) error {
	dialer, err := dialerOf(target)
	if err != nil {
		return err
	}
	connection, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return err
	}
	defer connection.Close()
	for number, port := range ports {
		headers := http.Header{}
		headers.Set("streamType", "error")
		headers.Set("port", port)
		headers.Set("requestID", fmt.Sprint(number))
		errors, err := connection.CreateStream(headers)
		if err != nil {
			return err
		}
		errors.Close()
		headers.Set("streamType", "data")
		data, err := connection.CreateStream(headers)
		if err != nil {
			return err
		}
		fmt.Fprint(data, "word")
		data.Close()
		came, _ := io.ReadAll(data)
		problem, _ := io.ReadAll(errors)
		fmt.Printf("%s: data %q error %q\n", port, came, problem)
		connection.RemoveStreams(errors, data)
	}
	return nil
}

func forward(target *url.URL, ports []string) error {
	dialer, err := dialerOf(target)
	if err != nil {
		return err
	}
	// What goes wrong with one connection is told here only.
	utilruntime.ErrorHandlers = []utilruntime.ErrorHandler{
		func(_ context.Context, err error, message string, _ ...interface{}) {
			fmt.Fprintln(os.Stderr, "streams:", message, err)
		},
	}
	stop := make(chan struct{})
	var once sync.Once
	go func() {
		io.Copy(io.Discard, os.Stdin)
		once.Do(func() { close(stop) })
	}()
	forwarder, err := portforward.NewOnAddresses(
		dialer, []string{"127.0.0.1"}, ports, stop, make(chan struct{}), os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	return forwarder.ForwardPorts()
}
