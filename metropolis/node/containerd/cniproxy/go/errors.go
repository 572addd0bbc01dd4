// SPDX-License-Identifier: Apache-2.0

package cni

import "errors"

// The errors that errors.Is finds in returned ones. The texts are go-cni's,
// since kubelet and people look for them.
var (
	ErrCNINotInitialized = errors.New("cni plugin not initialized")
	ErrInvalidConfig     = errors.New("invalid cni config")
	ErrInvalidResult     = errors.New("invalid result")
)
