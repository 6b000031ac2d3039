// Go's server, which closes idle connections without a word before; with CERT and KEY, HTTP/2 by TLS.
package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	count, err := os.OpenFile(os.Getenv("COUNT"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	idle, err := strconv.Atoi(os.Getenv("KEEP_ALIVE"))
	if err != nil {
		panic(err)
	}
	answer := func(response http.ResponseWriter, request *http.Request) {
		io.Copy(io.Discard, request.Body)
		count.WriteString(request.Header.Get("retry-id") + "\n")
		response.Write([]byte("ok"))
	}
	server := http.Server{
		Addr:        "127.0.0.1:" + os.Getenv("PORT"),
		Handler:     http.HandlerFunc(answer),
		IdleTimeout: time.Duration(idle) * time.Second,
	}
	// In good order: what is under way is answered.
	over := make(chan struct{})
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM)
		<-signals
		server.Shutdown(context.Background())
		close(over)
	}()
	if cert := os.Getenv("CERT"); cert != "" {
		err = server.ListenAndServeTLS(cert, os.Getenv("KEY"))
	} else {
		err = server.ListenAndServe()
	}
	if err != http.ErrServerClosed {
		panic(err)
	}
	<-over
}
