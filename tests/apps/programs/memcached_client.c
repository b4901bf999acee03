/* A client for memcached: so many connections, each in a thread of its own, text protocol.
 *
 *     memcached_client HOST PORT CONNECTIONS REQUESTS VALUE_BYTES
 *
 * Each connection sets 1,000 keys of its own to values made from the key, then gets them in turn,
 * compares every byte, and increments one counter that all share. Prints the rate of the gets and
 * what must be equal in every run: how many values agreed, and the counter. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { KEYS = 1000, MOST = 1 << 20 };

static struct sockaddr_in address;
static int requests, value_bytes;
static pthread_barrier_t loaded;

struct connection {
    int fd, number;
    long agreed;
    char buffer[MOST + 4096];
    size_t filled;
};

static void die(const char *what)
{
    fprintf(stderr, "memcached_client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void send_all(struct connection *c, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(c->fd, bytes, length, MSG_NOSIGNAL);
        if (n < 0)
            die("send");
        bytes += n;
        length -= n;
    }
}

/* Receives until the buffer ends with `end`. */
static void receive_until(struct connection *c, const char *end)
{
    size_t length = strlen(end);
    c->filled = 0;
    while (c->filled < length || memcmp(c->buffer + c->filled - length, end, length) != 0) {
        ssize_t n = recv(c->fd, c->buffer + c->filled, sizeof c->buffer - c->filled, 0);
        if (n < 0)
            die("recv");
        if (n == 0) {
            errno = 0;
            die("the server has closed the connection");
        }
        c->filled += n;
    }
}

static void make_value(char *value, int connection, int key)
{
    for (int i = 0; i < value_bytes; i++)
        value[i] = 'a' + (connection * 7 + key * 13 + i) % 26;
}

static void *work(void *argument)
{
    struct connection *c = argument;
    char *value = malloc(value_bytes + 1), line[128], *message = malloc(value_bytes + 256);
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (int key = 0; key < KEYS; key++) {
        make_value(value, c->number, key);
        int head = sprintf(message, "set c%d:k%d 0 0 %d\r\n", c->number, key, value_bytes);
        memcpy(message + head, value, value_bytes);
        memcpy(message + head + value_bytes, "\r\n", 2);
        send_all(c, message, head + value_bytes + 2);
        receive_until(c, "STORED\r\n");
    }
    pthread_barrier_wait(&loaded);
    pthread_barrier_wait(&loaded);
    for (int turn = 0; turn < requests; turn++) {
        int key = turn % KEYS;
        int length = sprintf(line, "get c%d:k%d\r\n", c->number, key);
        send_all(c, line, length);
        receive_until(c, "END\r\n");
        make_value(value, c->number, key);
        int head = sprintf(line, "VALUE c%d:k%d 0 %d\r\n", c->number, key, value_bytes);
        if (c->filled == (size_t)head + value_bytes + 7 && memcmp(c->buffer, line, head) == 0 &&
            memcmp(c->buffer + head, value, value_bytes) == 0)
            c->agreed++;
        if (key == 0) {
            send_all(c, "incr shared 1\r\n", 15);
            receive_until(c, "\r\n");
        }
    }
    free(value);
    free(message);
    return NULL;
}

int main(int count, char **arguments)
{
    if (count != 6) {
        fprintf(stderr, "usage: memcached_client HOST PORT CONNECTIONS REQUESTS VALUE_BYTES\n");
        return 2;
    }
    int connections = atoi(arguments[3]);
    requests = atoi(arguments[4]);
    value_bytes = atoi(arguments[5]);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(arguments[2]));
    if (inet_pton(AF_INET, arguments[1], &address.sin_addr) != 1 || connections < 1 ||
        connections > 256 || value_bytes < 1 || value_bytes > MOST) {
        fprintf(stderr, "memcached_client: bad address, count or size\n");
        return 2;
    }
    struct connection *all = calloc(connections + 1, sizeof *all), *control = all + connections;
    pthread_t *threads = calloc(connections, sizeof *threads);
    pthread_barrier_init(&loaded, NULL, connections + 1);
    control->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (control->fd < 0 || connect(control->fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    send_all(control, "set shared 0 0 1\r\n0\r\n", 21);
    receive_until(control, "STORED\r\n");
    for (int i = 0; i < connections; i++) {
        all[i].number = i;
        if (pthread_create(&threads[i], NULL, work, &all[i]) != 0)
            die("pthread_create");
    }
    struct timespec from, to;
    pthread_barrier_wait(&loaded);
    clock_gettime(CLOCK_MONOTONIC, &from);
    pthread_barrier_wait(&loaded);
    long agreed = 0;
    for (int i = 0; i < connections; i++) {
        pthread_join(threads[i], NULL);
        agreed += all[i].agreed;
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    send_all(control, "get shared\r\n", 12);
    receive_until(control, "END\r\n");
    char *shared = memchr(control->buffer, '\n', control->filled) + 1;
    double seconds = to.tv_sec - from.tv_sec + (to.tv_nsec - from.tv_nsec) / 1e9;
    printf("gets/s %.0f\n", (double)connections * requests / seconds);
    printf("agreed %ld of %ld, shared %ld\n", agreed, (long)connections * requests, atol(shared));
    return agreed == (long)connections * requests ? 0 : 1;
}
