"""The texts of the files that a network in C comes as."""

HEADER = """\
/*
 * $NAME: a network in integers only. Written by Winnow; README.txt says how to use it.
 */
#ifndef $UPPER_H
#define $UPPER_H

#include <stdint.h>

/* One input: $INPUT_BITS-bit integers (channel, height, width), $SIGNED.
 * A number v of channel c is the integer floor(v * 2**$NAME_input_lengths[c] + 0.5),
 * or the nearest one from $INPUT_LOWEST to $INPUT_HIGHEST. */
typedef $INPUT_TYPE $NAME_input_t;
#define $UPPER_INPUT_CHANNELS $CHANNELS
#define $UPPER_INPUT_HEIGHT $HEIGHT
#define $UPPER_INPUT_WIDTH $WIDTH
#define $UPPER_INPUT_SIZE $INPUT_SIZE
#define $UPPER_INPUT_BITS $INPUT_BITS
#define $UPPER_INPUT_IS_SIGNED $IS_SIGNED
extern const int8_t $NAME_input_lengths[$UPPER_INPUT_CHANNELS];

/* The logits: integers q that stand for q * 2**-$UPPER_OUTPUT_LENGTH. */
#define $UPPER_OUTPUT_SIZE $OUTPUT_SIZE
#define $UPPER_OUTPUT_LENGTH $OUTPUT_LENGTH

/* Memory, in bytes: constants, and static memory that the network works in. */
#define $UPPER_FLASH_BYTES $FLASH_BYTES
#define $UPPER_RAM_BYTES $RAM_BYTES

/* Run the network on $UPPER_INPUT_SIZE integers; writes $UPPER_OUTPUT_SIZE logits.
 * It works in static memory, so only one call may run at a time. */
void $NAME_run(const $NAME_input_t *input, int32_t *logits);

/* The class with the largest logit; the first of several. */
int $NAME_argmax(const int32_t *logits);

#endif
"""

SOURCE = """\
/*
 * $NAME: a network in integers only, in C99 and nothing but <stdint.h>. Written by Winnow.
 *
 * Tensors lie with their channels last: number (c, h, w) is at (h * WIDTH + w) * CHANNELS + c.
 * A number q of fractional length l stands for q * 2**-l; shifts turn one length into another.
 */
#include "$NAME.h"

/* What the code relies on and C99 leaves to the compiler; all known ones for two's complement machines agree. */
typedef char right_shift_keeps_the_sign[(-1 >> 1) == -1 ? 1 : -1];
typedef char conversion_to_signed_wraps[(int32_t)UINT32_C(0xFFFFFFFF) == -1 ? 1 : -1];

/* ---- Memory: offsets are fixed, and shared by what is never needed at the same time ---- */

$ARENAS

/* ---- Constants ---- */

const int8_t $NAME_input_lengths[$CHANNELS] = {$INPUT_LENGTHS};

$CONSTANTS
/* ---- Operations ---- */

$FUNCTIONS
/* ---- The network ---- */

void $NAME_run(const $NAME_input_t *input, int32_t *logits)
{
$RUN
}

int $NAME_argmax(const int32_t *logits)
{
    int best = 0;
    for (int i = 1; i < $OUTPUT_SIZE; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    return best;
}
"""

# Helpers by the text that tells whether a source uses them.
HELPERS = {
    "shift_left{bits}(": """\
/* value * 2**shift */
static inline int{bits}_t shift_left{bits}(int{bits}_t value, int32_t shift)
{{
    return (int{bits}_t)((uint{bits}_t)value << shift);
}}
""",
    "round_shift{bits}(": """\
/* value / 2**shift, rounded half up */
static inline int{bits}_t round_shift{bits}(int{bits}_t value, int32_t shift)
{{
    return (value + (int{bits}_t)(((uint{bits}_t)1 << shift) >> 1)) >> shift;
}}
""",
    "rescale{bits}(": """\
/* value / 2**shift, rounded half up, where the shift may be negative */
static inline int{bits}_t rescale{bits}(int{bits}_t value, int32_t shift)
{{
    return shift < 0 ? shift_left{bits}(value, -shift) : round_shift{bits}(value, shift);
}}
""",
    "clamp{bits}(": """\
/* The nearest number from low to high */
static inline int{bits}_t clamp{bits}(int{bits}_t value, int{bits}_t low, int{bits}_t high)
{{
    return value < low ? low : value > high ? high : value;
}}
""",
}

EXPECTED = """\
/* An example and its logits, for the test in main.c. */
static const $NAME_input_t example_input[$UPPER_INPUT_SIZE] = {
$INPUT
};

static const int32_t example_logits[$UPPER_OUTPUT_SIZE] = {
$LOGITS
};
"""

MAIN = """\
/*
 * Runs $NAME.
 *   without arguments: on the example in expected.h; says "ok" if its logits are the expected ones
 *   with a file: on the inputs in it, one after the other, as the bytes of $NAME_input_t; writes logits as int32_t to the output
 */
#include <stdio.h>
#include <string.h>

#include "$NAME.h"
#include "expected.h"

static $NAME_input_t input[$UPPER_INPUT_SIZE];
static int32_t logits[$UPPER_OUTPUT_SIZE];

static int test_example(void)
{
    $NAME_run(example_input, logits);
    if (memcmp(logits, example_logits, sizeof logits) != 0) {
        puts("FAILED: the example's logits differ from the expected ones");
        return 1;
    }
    printf("ok, class %d\\n", $NAME_argmax(logits));
    return 0;
}

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t count;
    if (file == NULL) {
        fprintf(stderr, "can't open %s\\n", path);
        return 1;
    }
    while ((count = fread(input, sizeof input[0], $UPPER_INPUT_SIZE, file)) == $UPPER_INPUT_SIZE) {
        $NAME_run(input, logits);
        if (fwrite(logits, sizeof logits[0], $UPPER_OUTPUT_SIZE, stdout) != $UPPER_OUTPUT_SIZE) {
            fprintf(stderr, "can't write the logits\\n");
            fclose(file);
            return 1;
        }
    }
    if (ferror(file) != 0 || count != 0) {
        fprintf(stderr, "%s doesn't end with a whole input\\n", path);
        fclose(file);
        return 1;
    }
    fclose(file);
    return fflush(stdout) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    return argc > 1 ? run_file(argv[1]) : test_example();
}
"""

README = """\
$NAME: a network in integers only, as C99

Files
  $NAME.h, $NAME.c   the network; needs only <stdint.h>: no library, no malloc, no floating point
  main.c, expected.h  a test program, which needs <stdio.h> and <string.h>

Compile and test
  cc -std=c99 -O2 -o $NAME $NAME.c main.c
  ./$NAME                            runs the stored example, says "ok"
  ./$NAME inputs.bin > logits.bin    runs any number of inputs
On processors with vector instructions, -O3 and a flag that names the processor (-march=native, -mcpu=cortex-m7) make it faster.

Input
  $CHANNELS x $HEIGHT x $WIDTH (channels, height, width) integers of $INPUT_BITS bits, $SIGNED, stored as $INPUT_TYPE
  A number v is stored as floor(v * 2**length + 0.5), limited to $INPUT_LOWEST ... $INPUT_HIGHEST.
  Lengths by channel: $INPUT_LENGTHS

Output
  $OUTPUT_SIZE logits as int32_t; the integer q stands for q * 2**-$OUTPUT_LENGTH. $NAME_argmax gives the class.

Memory
  Constants (flash): $FLASH_BYTES bytes, without code
  Work (RAM): $RAM_BYTES bytes, static; little stack
$ARENA_LINES

Operations
$OPERATIONS
"""
