/* Scanning of dot-encoded text, 64 octets at a time (RFC 5321 4.5.2).
 *
 * Everything is written on one small "vector" with a load, an equality test, and a way to turn a test's result into one
 * bit per octet.  There are three of them: SSE2, which every x86-64 has; the vector extension of GCC and Clang, which
 * becomes NEON, VSX or whatever the target has; and a 64-bit word for any other compiler.  All give the same answers.
 * Nothing depends on what the CPU is found to be at run time.
 *
 * Defining FASTSMTP_SCAN_VECTOR or FASTSMTP_SCAN_WORD chooses one of the others, for tests.
 */
#ifndef FASTSMTP_DOTSCAN_H
#define FASTSMTP_DOTSCAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_MSC_VER)
#include <intrin.h>
#define FS_INLINE static __forceinline
#elif defined(__GNUC__)
#define FS_INLINE static inline __attribute__((always_inline))
#else
#define FS_INLINE static inline
#endif

#define FS_ONES 0x0101010101010101ULL
#define FS_HIGH 0x8080808080808080ULL
#define FS_LOW7 0x7f7f7f7f7f7f7f7fULL

/* Index of the lowest bit that is set; bits is not 0. */
FS_INLINE unsigned fs_lowest(uint64_t bits)
{
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(bits);
#elif defined(_MSC_VER) && (defined(_M_X64) || defined(_M_ARM64))
    unsigned long index;
    _BitScanForward64(&index, bits);
    return (unsigned)index;
#else
    unsigned index = 0;
    while (!(bits & 1)) {
        bits >>= 1;
        index++;
    }
    return index;
#endif
}

/* The eight octets at p, the first of them in the lowest bits. */
FS_INLINE uint64_t fs_word(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* One bit per octet of a word whose octets have their highest bit set or not. */
FS_INLINE uint64_t fs_word_bits(uint64_t high)
{
    return (((high >> 7) & FS_ONES) * 0x0102040810204080ULL) >> 56;
}

/* ---- the vector ---- */

#if !defined(FASTSMTP_SCAN_VECTOR) && !defined(FASTSMTP_SCAN_WORD) \
    && (defined(__SSE2__) || (defined(_M_X64) && !defined(_M_ARM64EC)))

#include <emmintrin.h>
#define FS_WIDTH 16
typedef __m128i fs_vec;
#define fs_load(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define fs_store(p, v) _mm_storeu_si128((__m128i *)(void *)(p), (v))
#define fs_none() _mm_setzero_si128()
#define fs_equal(v, octet) _mm_cmpeq_epi8((v), _mm_set1_epi8(octet))
#define fs_and(a, b) _mm_and_si128((a), (b))
#define fs_or(a, b) _mm_or_si128((a), (b))
#define fs_xor(a, b) _mm_xor_si128((a), (b))
#define fs_bits(test) ((uint64_t)(uint32_t)_mm_movemask_epi8(test))
#define fs_any(test) (_mm_movemask_epi8(test) != 0)
#define fs_any_high(v) (_mm_movemask_epi8(v) != 0)

#elif !defined(FASTSMTP_SCAN_WORD) && defined(__GNUC__)

#define FS_WIDTH 16
typedef uint8_t fs_vec __attribute__((vector_size(16)));
#define FS_FILL(c) ((fs_vec){c, c, c, c, c, c, c, c, c, c, c, c, c, c, c, c})
FS_INLINE fs_vec fs_load(const uint8_t *p)
{
    fs_vec v;
    memcpy(&v, p, 16);
    return v;
}
FS_INLINE void fs_store(uint8_t *p, fs_vec v) { memcpy(p, &v, 16); }
FS_INLINE fs_vec fs_none(void) { return FS_FILL(0); }
#define fs_equal(v, octet) ((fs_vec)((v) == FS_FILL(octet)))
#define fs_and(a, b) ((a) & (b))
#define fs_or(a, b) ((a) | (b))
#define fs_xor(a, b) ((a) ^ (b))
FS_INLINE uint64_t fs_bits(fs_vec test)
{
    uint8_t octets[16];
    memcpy(octets, &test, 16);
    return fs_word_bits(fs_word(octets)) | fs_word_bits(fs_word(octets + 8)) << 8;
}
FS_INLINE int fs_any_high(fs_vec v)
{
    uint64_t words[2];
    memcpy(words, &v, 16);
    return ((words[0] | words[1]) & FS_HIGH) != 0;
}
#define fs_any(test) fs_any_high(test)

#else

#define FS_WIDTH 8
typedef uint64_t fs_vec;
#define fs_load(p) fs_word(p)
FS_INLINE void fs_store(uint8_t *p, fs_vec v)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    memcpy(p, &v, 8);
}
#define fs_none() ((fs_vec)0)
/* Exact, with no carry from one octet into the next: the highest bit is set where the octets are equal. */
FS_INLINE fs_vec fs_equal(fs_vec v, int octet)
{
    fs_vec differs = v ^ (FS_ONES * (uint64_t)octet);
    return ~(((differs & FS_LOW7) + FS_LOW7) | differs | FS_LOW7);
}
#define fs_and(a, b) ((a) & (b))
#define fs_or(a, b) ((a) | (b))
#define fs_xor(a, b) ((a) ^ (b))
#define fs_bits(test) fs_word_bits(test)
#define fs_any(test) ((test) != 0)
#define fs_any_high(v) (((v) & FS_HIGH) != 0)

#endif

/* ---- dot-encoded text ---- */

#define FS_BLOCK 64
#define FS_SLACK 32 /* octets that fs_dot_decode may write past the payload */

enum { FS_BARE_CR = 1, FS_BARE_LF = 2, FS_NUL = 4, FS_8BIT = 8 };

typedef struct {
    const uint8_t *text;
    size_t size;
    size_t position; /* what is before it has been scanned */
    size_t taken;    /* what is before it has been copied */
    size_t end;      /* index just past the end of data, or 0 */
    uint8_t *out;    /* next octet of the payload, or NULL as long as the payload is the text itself */
    unsigned flags;
    int strip;       /* CR LF becomes LF */
} fs_dot;

/* Copy text[taken:upto].  Lines are short: a few wide stores, which may run over the end, beat a call. */
FS_INLINE void fs_dot_take(fs_dot *dot, size_t upto)
{
    const uint8_t *from = dot->text + dot->taken;
    size_t count = upto - dot->taken;

    if (count <= 256 && dot->size - upto >= FS_WIDTH) {
        size_t k = 0;
        do {
            fs_store(dot->out + k, fs_load(from + k));
            k += FS_WIDTH;
        } while (k < count);
    }
    else {
        memcpy(dot->out, from, count);
    }
    dot->out += count;
}

static unsigned fs_octet_flags(const uint8_t *p, size_t count)
{
    uint8_t high = 0, nul = 0;
    size_t i;
    for (i = 0; i < count; i++) {
        high |= p[i];
        nul |= p[i] == 0;
    }
    return (high & 0x80 ? FS_8BIT : 0) | (nul ? FS_NUL : 0);
}

/* What a CR LF at text[lf - 1:lf + 1] asks for, besides to go on. */
enum { FS_GO_ON, FS_ENDED, FS_NEEDS_OUT };

/* The line behind the LF at `lf` begins with a dot: remove it, or see the end.  Two octets follow the dot, or one that is
 * no CR: the caller holds back what is less. */
FS_INLINE int fs_dot_stuffed(fs_dot *dot, size_t lf)
{
    const uint8_t *behind = dot->text + lf + 2;
    if (behind[0] == '\r' && behind[1] == '\n') {
        if (dot->out)
            fs_dot_take(dot, lf + 1);
        dot->taken = lf + 1;
        dot->end = lf + 4;
        return FS_ENDED;
    }
    if (!dot->out)
        return FS_NEEDS_OUT;
    fs_dot_take(dot, lf + 1);
    dot->taken = lf + 2;
    return FS_GO_ON;
}

/* The CR LF whose LF is at `lf` becomes LF. */
FS_INLINE int fs_dot_strip(fs_dot *dot, size_t lf)
{
    if (!dot->out)
        return FS_NEEDS_OUT;
    fs_dot_take(dot, lf - 1);
    dot->taken = lf;
    return FS_GO_ON;
}

/* Blocks whose CR and LF are all in pairs, which are most.  The neighbours of an octet come from a second and a third
 * load; that costs less than to make masks and shift them. */
FS_INLINE int fs_dot_paired(fs_dot *dot, const int strip)
{
    const uint8_t *text = dot->text;
    const size_t size = dot->size;
    size_t base = dot->position;
    fs_vec high = fs_none(), nul = fs_none();
    int state = FS_GO_ON;

    for (; size - base > FS_BLOCK; base += FS_BLOCK) {
        fs_vec odd = fs_none(), block_high = fs_none(), block_nul = fs_none();
        fs_vec events[FS_BLOCK / FS_WIDTH], any_event = fs_none(); /* LF, or LF and a dot behind it */
        int k;
        for (k = 0; k < FS_BLOCK; k += FS_WIDTH) {
            fs_vec here = fs_load(text + base + k);
            fs_vec lf = fs_equal(here, '\n');
            odd = fs_or(odd, fs_xor(lf, fs_equal(fs_load(text + base + k - 1), '\r')));
            if (!strip)
                lf = fs_and(lf, fs_equal(fs_load(text + base + k + 1), '.'));
            events[k / FS_WIDTH] = lf;
            any_event = fs_or(any_event, lf);
            block_nul = fs_or(block_nul, fs_equal(here, 0));
            block_high = fs_or(block_high, here);
        }
        if (fs_any(odd))
            break;
        if (fs_any(any_event)) {
            uint64_t bits = 0;
            for (k = 0; k < FS_BLOCK; k += FS_WIDTH)
                bits |= fs_bits(events[k / FS_WIDTH]) << k;
            for (; bits; bits &= bits - 1) {
                const size_t lf = base + fs_lowest(bits);
                if (strip)
                    state = fs_dot_strip(dot, lf);
                if (state == FS_GO_ON && (!strip || text[lf + 1] == '.'))
                    state = fs_dot_stuffed(dot, lf);
                if (state == FS_ENDED)
                    dot->flags |= fs_octet_flags(text + base, lf - base);
                if (state != FS_GO_ON)
                    goto done;
            }
        }
        nul = fs_or(nul, block_nul);
        high = fs_or(high, block_high);
    }
done:
    dot->position = base;
    if (fs_any(nul))
        dot->flags |= FS_NUL;
    if (fs_any_high(high))
        dot->flags |= FS_8BIT;
    return state;
}

/* One block of any kind, the last of a text included. */
static int fs_dot_block(fs_dot *dot)
{
    const uint8_t *text = dot->text;
    const size_t base = dot->position;
    const size_t left = dot->size - base;
    const uint8_t *p = text + base;
    uint8_t padded[FS_BLOCK];
    uint64_t cr = 0, lf = 0, dots = 0, valid = ~(uint64_t)0;
    uint64_t after_cr, pairs, bare_cr, bare_lf, events;
    fs_vec high = fs_none(), nul = fs_none();
    int k;

    if (left < FS_BLOCK) {
        memset(padded, ' ', FS_BLOCK);
        memcpy(padded, p, left);
        p = padded;
        valid = ((uint64_t)1 << left) - 1;
    }
    for (k = 0; k < FS_BLOCK; k += FS_WIDTH) {
        fs_vec here = fs_load(p + k);
        cr |= fs_bits(fs_equal(here, '\r')) << k;
        lf |= fs_bits(fs_equal(here, '\n')) << k;
        dots |= fs_bits(fs_equal(here, '.')) << k;
        nul = fs_or(nul, fs_equal(here, 0));
        high = fs_or(high, here);
    }
    after_cr = cr << 1 | (base > 0 && text[base - 1] == '\r');
    pairs = lf & after_cr;
    bare_lf = lf & ~after_cr;
    bare_cr = after_cr & ~lf & valid;
    dots = pairs & (dots >> 1 | (uint64_t)(left > FS_BLOCK && p[FS_BLOCK] == '.') << 63);

    for (events = dot->strip ? pairs : dots; events; events &= events - 1) {
        const unsigned bit = fs_lowest(events);
        const size_t at = base + bit;
        if (dot->strip && fs_dot_strip(dot, at) != FS_GO_ON)
            return FS_NEEDS_OUT;
        if (dots >> bit & 1) {
            const int state = fs_dot_stuffed(dot, at);
            if (state == FS_ENDED) {
                const uint64_t before = ((uint64_t)1 << bit) - 1;
                dot->flags |= fs_octet_flags(text + base, bit);
                dot->flags |= (bare_cr & before ? FS_BARE_CR : 0) | (bare_lf & before ? FS_BARE_LF : 0);
            }
            if (state != FS_GO_ON)
                return state;
        }
    }
    dot->flags |= (bare_cr ? FS_BARE_CR : 0) | (bare_lf ? FS_BARE_LF : 0);
    dot->flags |= (fs_any(nul) ? FS_NUL : 0) | (fs_any_high(high) ? FS_8BIT : 0);
    dot->position = base + (left < FS_BLOCK ? left : FS_BLOCK);
    return FS_GO_ON;
}

/* Decode text[position:size].
 *
 * The text begins within a line, or at a line that begins with no dot; it does not end in CR LF and a dot, or CR LF, a dot
 * and CR; text[size] can be read.  Returns 1 when done: the payload is what has been written to out, or text[:taken] as
 * long as out is NULL.  Returns 0 when it needs out, room for the whole text and FS_SLACK more; call it again then. */
static int fs_dot_decode(fs_dot *dot)
{
    while (dot->position < dot->size) {
        int state = FS_GO_ON;
        if (dot->position > 0)
            state = dot->strip ? fs_dot_paired(dot, 1) : fs_dot_paired(dot, 0);
        if (state == FS_GO_ON)
            state = fs_dot_block(dot);
        if (state != FS_GO_ON)
            return state == FS_ENDED;
    }
    if (dot->out)
        fs_dot_take(dot, dot->size);
    dot->taken = dot->size;
    return 1;
}

/* ---- lines ---- */

enum { FS_CONTROL = 1, FS_EIGHT_BIT = 2 };

/* Whether any octet is below 32 or is 127 (FS_CONTROL), whether any is above 127 (FS_EIGHT_BIT). */
FS_INLINE unsigned fs_line_flags(const uint8_t *p, size_t count)
{
    uint64_t high = 0, control = 0;
    while (count) {
        uint64_t word;
        if (count >= 8) {
            memcpy(&word, p, 8);
            p += 8;
            count -= 8;
        }
        else {
            word = FS_ONES * ' ';
            memcpy(&word, p, count);
            count = 0;
        }
        high |= word;
        control |= (word - FS_ONES * 32) & ~word;              /* below 32 */
        control |= ((word ^ FS_LOW7) - FS_ONES) & ~(word ^ FS_LOW7); /* is 127 */
    }
    return (control & FS_HIGH ? FS_CONTROL : 0) | (high & FS_HIGH ? FS_EIGHT_BIT : 0);
}

/* Up to eight octets as one word, ASCII letters in upper case: two verbs are equal when word and length are. */
FS_INLINE uint64_t fs_verb_word(const uint8_t *p, size_t count)
{
    uint64_t word = 0;
    memcpy(&word, p, count);
    return word & (FS_ONES * 0xDF);
}

#endif
