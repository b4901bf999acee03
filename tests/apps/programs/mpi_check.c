/* Messages of MPI whose results are known: a ring, an allreduce, and an exchange of all with all, at sizes
 * from nothing to megabytes.
 *
 *     mpi_check check            prints one line that must be equal in every run
 *     mpi_check allreduce BYTES ROUNDS
 *                                prints the microseconds of one allreduce
 *     mpi_check pingpong BYTES ROUNDS
 *                                two processes: prints the microseconds of half a round, and whether each message
 *                                came back as the other one makes it */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int rank, ranks;

static uint64_t mix(uint64_t hash, const void *bytes, size_t length)
{
    const unsigned char *byte = bytes;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ byte[i]) * 1099511628211u;
    return hash;
}

/* Each hands a message to its right neighbour; what comes from the left must be what it made. */
static uint64_t ring(int bytes, int rounds)
{
    unsigned char *out = malloc(bytes + 1), *in = malloc(bytes + 1);
    int right = (rank + 1) % ranks, left = (rank + ranks - 1) % ranks;
    uint64_t hash = 14695981039346656037u, wrong = 0;
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < bytes; i++)
            out[i] = rank * 31 + round * 7 + i;
        MPI_Sendrecv(out, bytes, MPI_BYTE, right, round, in, bytes, MPI_BYTE, left, round,
                     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (int i = 0; i < bytes; i++)
            wrong += in[i] != (unsigned char)(left * 31 + round * 7 + i);
        hash = mix(hash, in, bytes);
    }
    free(out);
    free(in);
    return wrong ? 0 : hash;
}

static uint64_t allreduce(int words, int rounds)
{
    int64_t *out = malloc(sizeof *out * words), *in = malloc(sizeof *in * words);
    uint64_t hash = 14695981039346656037u, wrong = 0;
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < words; i++)
            out[i] = (int64_t)(rank + 1) * (i + round);
        MPI_Allreduce(out, in, words, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
        for (int i = 0; i < words; i++)
            wrong += in[i] != (int64_t)ranks * (ranks + 1) / 2 * (i + round);
        hash = mix(hash, in, sizeof *in * words);
    }
    free(out);
    free(in);
    return wrong ? 0 : hash;
}

static uint64_t all_to_all(int bytes)
{
    unsigned char *out = malloc((size_t)bytes * ranks), *in = malloc((size_t)bytes * ranks);
    uint64_t wrong = 0;
    for (int to = 0; to < ranks; to++)
        memset(out + (size_t)to * bytes, rank * 16 + to, bytes);
    MPI_Alltoall(out, bytes, MPI_BYTE, in, bytes, MPI_BYTE, MPI_COMM_WORLD);
    for (int from = 0; from < ranks; from++)
        for (int i = 0; i < bytes; i++)
            wrong += in[(size_t)from * bytes + i] != from * 16 + rank;
    uint64_t hash = mix(14695981039346656037u, in, (size_t)bytes * ranks);
    free(out);
    free(in);
    return wrong ? 0 : hash;
}

static void check(void)
{
    static const int sizes[] = { 0, 1, 8, 1000, 65536, 1000000, 5000000 };
    uint64_t hash = 14695981039346656037u;
    int good = 1;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t parts[] = { ring(sizes[i], sizes[i] < 100000 ? 50 : 3),
                             allreduce(sizes[i] / 8 + 1, sizes[i] < 100000 ? 50 : 3),
                             all_to_all(sizes[i] / 4 + 1) };
        for (int part = 0; part < 3; part++)
            good &= parts[part] != 0;
        hash = mix(hash, parts, sizeof parts);
    }
    uint64_t all = 0;
    int everywhere = 0;
    MPI_Reduce(&hash, &all, 1, MPI_UINT64_T, MPI_BXOR, 0, MPI_COMM_WORLD);
    MPI_Reduce(&good, &everywhere, 1, MPI_INT, MPI_MIN, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("result %016llx of %d ranks, %s\n", (unsigned long long)all, ranks,
               everywhere ? "all as expected" : "WRONG");
    fflush(stdout);
}

/* The first rank sends; the second answers with each byte plus one. Looking at the bytes is part of both sides'
 * time, the same in every form; only the ends of large messages are looked at in timed rounds. */
static void pingpong(int bytes, int rounds)
{
    unsigned char *out = malloc(bytes + 1), *in = malloc(bytes + 1);
    int warm = rounds / 10 + 1, wrong = 0;
    double start = 0;
    for (int round = -warm; round < rounds; round++) {
        int step = round >= 0 && bytes > 64 ? bytes - 1 : 1;
        if (round == 0) {
            MPI_Barrier(MPI_COMM_WORLD);
            start = MPI_Wtime();
        }
        for (int i = 0; i < bytes; i += step)
            out[i] = round * 7 + i;
        if (rank == 0) {
            MPI_Send(out, bytes, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
            MPI_Recv(in, bytes, MPI_BYTE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            for (int i = 0; i < bytes; i += step)
                wrong += in[i] != (unsigned char)(out[i] + 1);
        } else {
            MPI_Recv(in, bytes, MPI_BYTE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            for (int i = 0; i < bytes; i += step) {
                wrong += in[i] != out[i];
                out[i] = in[i] + 1;
            }
            MPI_Send(out, bytes, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
        }
    }
    double seconds = MPI_Wtime() - start;
    int all = 0;
    MPI_Reduce(&wrong, &all, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("us %.2f, %s\n", seconds * 1e6 / rounds / 2, all ? "WRONG" : "all as expected");
    fflush(stdout);
    free(out);
    free(in);
}

int main(int count, char **arguments)
{
    MPI_Init(&count, &arguments);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (count == 4 && strcmp(arguments[1], "allreduce") == 0) {
        int words = atoi(arguments[2]) / 8, rounds = atoi(arguments[3]);
        int64_t *out = calloc(words, sizeof *out), *in = calloc(words, sizeof *in);
        for (int round = 0; round < rounds / 10 + 1; round++)
            MPI_Allreduce(out, in, words, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
        MPI_Barrier(MPI_COMM_WORLD);
        double start = MPI_Wtime();
        for (int round = 0; round < rounds; round++)
            MPI_Allreduce(out, in, words, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
        double seconds = MPI_Wtime() - start;
        if (rank == 0)
            printf("us %.2f\n", seconds * 1e6 / rounds);
        fflush(stdout);
        free(out);
        free(in);
    } else if (count == 4 && strcmp(arguments[1], "pingpong") == 0 && ranks == 2) {
        pingpong(atoi(arguments[2]), atoi(arguments[3]));
    } else {
        check();
    }
    MPI_Finalize();
    return 0;
}
