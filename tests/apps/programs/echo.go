// An echo server and its client. Go makes its system calls without libc.
//
//	echo serve PORT
//	echo work  PORT ROUNDS
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strconv"
)

const host = "10.77.0.1:"

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func serve(port string) {
	listener, err := net.Listen("tcp", host+port)
	must(err)
	for {
		connection, err := listener.Accept()
		must(err)
		go func() {
			// io.Copy between two sockets is splice.
			io.Copy(connection, connection)
			connection.Close()
		}()
	}
}

func exchange(port string, number int, rounds int) []byte {
	connection, err := net.Dial("tcp", host+port)
	must(err)
	random := rand.New(rand.NewSource(int64(number)))
	hash := sha256.New()
	for round := 0; round < rounds; round++ {
		message := make([]byte, []int{1, 100, 5000, 100000}[random.Intn(4)])
		random.Read(message)
		go func() {
			_, err := connection.Write(message)
			must(err)
		}()
		answer := make([]byte, len(message))
		_, err := io.ReadFull(connection, answer)
		must(err)
		if !bytes.Equal(answer, message) {
			must(fmt.Errorf("another answer"))
		}
		hash.Write(answer)
	}
	must(connection.(*net.TCPConn).CloseWrite())
	rest, err := io.ReadAll(connection)
	must(err)
	hash.Write(rest)
	return hash.Sum(nil)
}

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2])
	}
	rounds, err := strconv.Atoi(os.Args[3])
	must(err)
	digests := make([]chan []byte, 8)
	for number := range digests {
		digests[number] = make(chan []byte)
		go func(number int) { digests[number] <- exchange(os.Args[2], number, rounds) }(number)
	}
	all := sha256.New()
	for _, digest := range digests {
		all.Write(<-digest)
	}
	fmt.Printf("digest %x\n", all.Sum(nil))
}
