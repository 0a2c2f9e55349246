// Command tool is everything the lab needs inside its machines and pods, as one static binary.
//
// In pods: `pause` (the sandbox container), `serve`, `resolve`, `get`, `write` and `read` (what the tests ask).
// On the control plane's machine: `forward`, the one way in from the host's loopback to the API server.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const usage = `usage: tool pause
       tool serve ADDRESS            answer HTTP with the host name
       tool resolve NAME             print the addresses of NAME, one a line
       tool get URL                  print the answer
       tool write FILE TEXT          write TEXT and sync it
       tool read FILE                print FILE
       tool forward LISTEN-FD TARGET pass every connection accepted on the descriptor on to TARGET`

var commands = map[string]struct {
	arguments int
	run       func([]string) error
}{
	"pause":   {0, pause},
	"serve":   {1, serve},
	"resolve": {1, resolve},
	"get":     {1, get},
	"write":   {2, write},
	"read":    {1, read},
	"forward": {2, forward},
}

func main() {
	if len(os.Args) < 2 {
		fail(2, usage)
	}
	command, known := commands[os.Args[1]]
	arguments := os.Args[2:]
	if !known || len(arguments) != command.arguments {
		fail(2, usage)
	}
	if err := command.run(arguments); err != nil {
		fail(1, err.Error())
	}
}

func fail(code int, message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(code)
}

// pause holds a pod's namespaces; as their first process it also buries orphans.
func pause([]string) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for received := range signals {
		if received != syscall.SIGCHLD {
			return nil
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
	return nil
}

func serve(arguments []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Println(name, "serves on", arguments[0])
	return http.ListenAndServe(arguments[0], http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) {
		answer.Header().Set("Connection", "close") // so that a Service spreads requests, not connections
		fmt.Fprintln(answer, name)
	}))
}

func resolve(arguments []string) error {
	addresses, err := net.LookupHost(arguments[0])
	for _, address := range addresses {
		fmt.Println(address)
	}
	return err
}

func get(arguments []string) error {
	client := http.Client{Timeout: 5 * time.Second}
	answer, err := client.Get(arguments[0])
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s", arguments[0], answer.Status)
	}
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

func write(arguments []string) error {
	file, err := os.Create(arguments[0])
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteString(arguments[1]); err != nil {
		return err
	}
	return file.Sync()
}

func read(arguments []string) error {
	content, err := os.ReadFile(arguments[0])
	if err == nil {
		_, err = os.Stdout.Write(content)
	}
	return err
}

// forward accepts on a socket that was opened in the host's network namespace and dials in its own.
func forward(arguments []string) error {
	descriptor, err := strconv.Atoi(arguments[0])
	if err != nil {
		return err
	}
	listener, err := net.FileListener(os.NewFile(uintptr(descriptor), "listener"))
	if err != nil {
		return err
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go pass(client, arguments[1])
	}
}

func pass(client net.Conn, target string) {
	defer client.Close()
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{server, client}, {client, server}} {
		go func() {
			io.Copy(way[0], way[1])
			way[0].(*net.TCPConn).CloseWrite()
			ended <- struct{}{}
		}()
	}
	<-ended
	<-ended
}
