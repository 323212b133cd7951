/* libFuzzer on `_dotscan.h`, the C of the compiled text protocol, against the same written octet by octet.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -I src/fastsmtp fuzz/dotscan.c -o build/dotscan && build/dotscan fuzz/corpus/dotscan
 *
 * -DFASTSMTP_SCAN_VECTOR and -DFASTSMTP_SCAN_WORD take the scanner's other two forms.  With -DREPLAY and no fuzzer it has a main of its own,
 * which runs the files that it is given once.
 *
 * The first octet of an input chooses what is done, the rest is the text.  Every buffer has exactly the size that the scanner may count on,
 * so that AddressSanitizer sees an octet beside it.
 */
#include <stdio.h>
#include <stdlib.h>

#include "_dotscan.h"

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            abort();                                                             \
        }                                                                        \
    } while (0)

/* What RFC 5321 4.5.2 says, for a text that begins within a line. */
typedef struct {
    uint8_t *out;
    size_t count;
    size_t end;
    unsigned flags;
} reference;

/* Of the text itself: behind a bare CR there may be a dot that is removed.  A CR at the very end is its caller's to judge. */
static void bare_cr(reference *r, const uint8_t *text, size_t size)
{
    size_t i;
    for (i = 0; i + 1 < size; i++)
        if (text[i] == '\r' && text[i + 1] != '\n')
            r->flags |= FS_BARE_CR;
}

static void decode(reference *r, const uint8_t *text, size_t size, int strip)
{
    int at_line = 0;
    size_t i;
    for (i = 0; i < size; i++) {
        const int pair = i > 0 && text[i - 1] == '\r' && text[i] == '\n';
        if (at_line && text[i] == '.') {
            at_line = 0;
            if (i + 2 < size && text[i + 1] == '\r' && text[i + 2] == '\n') {
                r->end = i + 3;
                bare_cr(r, text, i);
                return;
            }
            continue;
        }
        at_line = 0;
        if (text[i] == '\n') {
            if (pair) {
                at_line = 1;
                if (strip)
                    r->count--; /* the CR */
            }
            else {
                r->flags |= FS_BARE_LF;
            }
        }
        if (text[i] == 0)
            r->flags |= FS_NUL;
        if (text[i] > 127)
            r->flags |= FS_8BIT;
        r->out[r->count++] = text[i];
    }
    bare_cr(r, text, size);
}

static void test_dots(const uint8_t *input, size_t size, int strip)
{
    /* What the decoder does before it calls: a text that ends in what is not certain is cut, and never begins with a dot. */
    uint8_t *text, *out, *expected;
    reference r = {0};
    fs_dot dot = {0};
    if (size && input[size - 1] == '\r')
        size -= size >= 4 && !memcmp(input + size - 4, "\r\n.", 3) ? 2 : 1;
    else if (size >= 3 && !memcmp(input + size - 3, "\r\n.", 3))
        size -= 1;
    if (size && input[0] == '.')
        return;
    text = malloc(size + 1); /* text[size] can be read */
    out = malloc(size + FS_SLACK);
    expected = malloc(size + 1);
    CHECK(text && out && expected);
    if (size)
        memcpy(text, input, size);
    text[size] = '.';
    memset(out, 0xA5, size + FS_SLACK);

    r.out = expected;
    decode(&r, text, size, strip);

    dot.text = text;
    dot.size = size;
    dot.strip = strip;
    if (!fs_dot_decode(&dot)) {
        dot.out = out;
        CHECK(fs_dot_decode(&dot));
        CHECK((size_t)(dot.out - out) == r.count);
        CHECK(!memcmp(out, expected, r.count));
    }
    else {
        CHECK(dot.taken == r.count);
        CHECK(!memcmp(text, expected, r.count));
    }
    CHECK(dot.end == r.end);
    CHECK(dot.flags == r.flags);
    free(text);
    free(out);
    free(expected);
}

static void test_line(const uint8_t *input, size_t size)
{
    unsigned flags = 0;
    size_t i;
    uint8_t *line = malloc(size ? size : 1);
    CHECK(line);
    if (size)
        memcpy(line, input, size);
    for (i = 0; i < size; i++) {
        if (line[i] < 32 || line[i] == 127)
            flags |= FS_CONTROL;
        if (line[i] > 127)
            flags |= FS_EIGHT_BIT;
    }
    CHECK(fs_line_flags(line, size) == flags);
    if (size && size <= 8) {
        uint64_t word = fs_verb_word(line, size);
        for (i = 0; i < size; i++)
            if ((line[i] >= 'a' && line[i] <= 'z') || (line[i] >= 'A' && line[i] <= 'Z')) {
                line[i] ^= 0x20;
                CHECK(fs_verb_word(line, size) == word);
            }
    }
    free(line);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    switch (data[0] & 3) {
    case 0: test_dots(data + 1, size - 1, 0); break;
    case 1: test_dots(data + 1, size - 1, 1); break;
    default: test_line(data + 1, size - 1); break;
    }
    return 0;
}

#ifdef REPLAY
int main(int argc, char **argv)
{
    int i;
    for (i = 1; i < argc; i++) {
        static uint8_t data[1 << 20];
        FILE *file = fopen(argv[i], "rb");
        CHECK(file);
        LLVMFuzzerTestOneInput(data, fread(data, 1, sizeof data, file));
        fclose(file);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}
#endif
