// Lists tars as Go's archive/tar reads them. Each comes on standard input behind its length,
// eight bytes big endian; the answer is one line for each entry and a last one, "end" or "error".
package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
)

const longest = 1 << 20

func list(archive []byte, out io.Writer) error {
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		kind := header.Typeflag
		if kind == tar.TypeCont || kind == tar.TypeGNUSparse {
			kind = tar.TypeReg
		}
		size, content := int64(0), "none"
		if kind == tar.TypeReg {
			size, content = header.Size, "long"
			if header.Size <= longest {
				hash := sha256.New()
				if _, err := io.Copy(hash, reader); err != nil {
					return err
				}
				content = fmt.Sprintf("%x", hash.Sum(nil))
			}
		}
		major, minor := header.Devmajor, header.Devminor
		if kind != tar.TypeChar && kind != tar.TypeBlock {
			major, minor = 0, 0
		}
		fmt.Fprintf(out, "%c %x %x %o %d %d %d.%09d %d %d:%d %s\n", kind, header.Name, header.Linkname,
			header.Mode&0o7777, header.Uid, header.Gid, header.ModTime.Unix(), header.ModTime.Nanosecond(),
			size, major, minor, content)
	}
}

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		var length uint64
		if binary.Read(in, binary.BigEndian, &length) != nil {
			return
		}
		archive := make([]byte, length)
		if _, err := io.ReadFull(in, archive); err != nil {
			return
		}
		if list(archive, out) == nil {
			fmt.Fprintln(out, "end")
		} else {
			fmt.Fprintln(out, "error")
		}
		out.Flush()
	}
}
