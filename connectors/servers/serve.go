// Go's server, which closes idle connections without a word before.
package main

import (
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	count, err := os.OpenFile(os.Getenv("COUNT"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	answer := func(response http.ResponseWriter, request *http.Request) {
		io.Copy(io.Discard, request.Body)
		count.WriteString("1\n")
		response.Write([]byte("ok"))
	}
	server := http.Server{
		Addr:        "127.0.0.1:" + os.Getenv("PORT"),
		Handler:     http.HandlerFunc(answer),
		IdleTimeout: time.Second,
	}
	panic(server.ListenAndServe())
}
