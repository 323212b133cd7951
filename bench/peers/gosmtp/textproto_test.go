// net/textproto on the same texts as bench/test_micro.py.  FASTSMTP_BENCH_TEXTS names the directory they are in.
package main

import (
	"bufio"
	"bytes"
	"io"
	"net/textproto"
	"os"
	"path/filepath"
	"testing"
)

func text(b *testing.B, name string) []byte {
	data, err := os.ReadFile(filepath.Join(os.Getenv("FASTSMTP_BENCH_TEXTS"), name))
	if err != nil {
		b.Skip(err)
	}
	b.SetBytes(int64(len(data)))
	return data
}

// each runs work on a reader of the text from its beginning, again and again.
func each(b *testing.B, data []byte, work func(*textproto.Reader) error) {
	source := bytes.NewReader(data)
	buffer := bufio.NewReaderSize(source, 1<<16)
	reader := textproto.NewReader(buffer)
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		source.Reset(data)
		buffer.Reset(source)
		if err := work(reader); err != nil {
			b.Fatal(err)
		}
	}
}

func dots(reader *textproto.Reader) error {
	_, err := io.Copy(io.Discard, reader.DotReader())
	return err
}

func BenchmarkDecoderOrdinary(b *testing.B) { each(b, append(text(b, "ordinary"), ".\r\n"...), dots) }
func BenchmarkDecoderStuffed(b *testing.B)  { each(b, append(text(b, "stuffed"), ".\r\n"...), dots) }

func BenchmarkMessage(b *testing.B) {
	each(b, text(b, "message"), func(reader *textproto.Reader) error {
		_, err := reader.ReadDotBytes()
		return err
	})
}

func BenchmarkHeader(b *testing.B) {
	each(b, text(b, "header"), func(reader *textproto.Reader) error {
		_, err := reader.ReadMIMEHeader()
		return err
	})
}

func BenchmarkResponse(b *testing.B) {
	each(b, text(b, "response"), func(reader *textproto.Reader) error {
		_, _, err := reader.ReadResponse(250)
		return err
	})
}

func BenchmarkCommand(b *testing.B) {
	each(b, text(b, "command"), func(reader *textproto.Reader) error {
		_, err := reader.ReadLine()
		return err
	})
}

func BenchmarkEncoder(b *testing.B) {
	data := text(b, "ordinary")
	writer := textproto.NewWriter(bufio.NewWriterSize(io.Discard, 1<<16))
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		dot := writer.DotWriter()
		if _, err := dot.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := dot.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

var key string

func BenchmarkKeyCommon(b *testing.B) {
	for i := 0; i < b.N; i++ {
		key = textproto.CanonicalMIMEHeaderKey("content-type")
	}
}

func BenchmarkKeyOther(b *testing.B) {
	for i := 0; i < b.N; i++ {
		key = textproto.CanonicalMIMEHeaderKey("x-no-such-key")
	}
}
